"""Kaggle's test.csv in, submission.csv out: every row once, in its place, whatever is wrong with it.

The stages before drop duplicates and reject rows that they cannot read. A submission needs a line for each: a row that
is no conversation gets the prior, and a kind of rows of which people's votes are known (`predict.rules`) gets these.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax

from core.data.collecting import REJECTED
from core.data.parsing import BadRow, identify, parse
from core.data.readers import BALLOTS, COUNTS, FOREIGN_VOTES, REQUIRED, WINNERS, Row, open_sources
from core.errors import UserError
from core.records import LABELS, Conversation, swap_labels
from core.scoring import swap_average
from core.tables import read_csv
from deploy.predicting.config import RulesConfig
from distill.config import Config

COLUMNS = ["id", *WINNERS]
FLOOR = 1e-9  # of a probability: the metric takes logarithms
SUM_TOLERANCE = 1e-6
NAMED = 5  # how many offending rows a message names


@dataclass(frozen=True)
class Unlabelled:
    """The rows to predict: all `ids` in order, the `conversations` that a judge reads, `ruled` ids with what the rules
    say, and the `unreadable` rest (`REJECTED`). `identity` changes when the file does.
    """

    ids: list[str]
    conversations: list[Conversation]
    ruled: dict[str, Sequence[float]]
    unreadable: pl.DataFrame
    identity: dict[str, Any]


def read_unlabelled(config: Config) -> Unlabelled:
    """The rows of `input`, their votes left aside.

    Raises `UserError` where it is no such file, where a row has no id and where two have the same.
    """
    if config.input is None or not Path(config.input).is_file():
        raise UserError(
            f"input={config.input}: no such file; give a CSV, parquet or JSONL file with the columns {list(REQUIRED)}"
        )
    ignored = [*config.data.ignore_columns, *WINNERS, *COUNTS, BALLOTS, *FOREIGN_VOTES]
    data = replace(config.data, files=[config.input], hub=None, simulate=None, ignore_columns=ignored)
    (source,) = open_sources(data)
    ids: list[str] = []
    conversations: list[Conversation] = []
    ruled: dict[str, Sequence[float]] = {}
    unreadable: list[tuple[str, int, str, str]] = []
    for row in islice(source.rows(), config.limit):
        ids.append(read_id(row, config.input))
        try:
            conversation = parse(row, source)
        except BadRow as problem:
            unreadable.append((source.name, row.line, ids[-1], str(problem)))
            continue
        rule = apply_rules(conversation, config.predict.rules)
        if rule is None:
            conversations.append(replace(conversation, id=ids[-1]))
        else:
            ruled[ids[-1]] = rule
    if double := [name for name, times in Counter(ids).items() if times > 1]:
        raise UserError(
            f"{config.input}: {len(double)} ids occur more than once, such as {double[:NAMED]}: "
            "a submission has one line for each id, so make them unique"
        )
    return Unlabelled(
        ids, conversations, ruled, pl.DataFrame(unreadable, schema=REJECTED, orient="row"), source.identity
    )


def read_id(row: Row, path: str) -> str:
    """A row's id (see `identify`). Raises `UserError` where it has none: no line could stand for it."""
    try:
        return identify(row.cells)
    except BadRow as problem:
        reason = row.problem if "id" not in row.cells and row.problem else problem
        raise UserError(
            f"{path}, row {row.line}: {reason}. A submission has a line for each id: mend this one, in UTF-8"
        ) from None


def apply_rules(conversation: Conversation, rules: RulesConfig) -> Sequence[float] | None:
    """What people vote for a conversation of this kind, in the order of `LABELS`; None: that is for the judge to say.

    Spacing does not count. Where both responses are empty, the judge decides.
    """
    a, b = ([text.split() for text in side] for side in (conversation.response_a, conversation.response_b))
    if not any(a) and not any(b):
        return None
    if not any(a) or not any(b):
        empty_first = rules.one_empty
        return empty_first if empty_first is None or any(b) else swap_labels(empty_first)
    return rules.identical if a == b else None


def probabilities(
    rows: Unlabelled, scores: pl.DataFrame, recalibrate: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """float64 [rows, 3] in the order of `rows.ids`: the softmax of the recalibrated mean over the orders there are.

    `scores` has columns id and logits, one row an order. What nobody judged gets the prior: the mean over all that was
    judged, which for a calibrated judge is how often people vote so; without any the labels are equally likely.
    """
    averaged = swap_average(scores)
    judged = softmax(recalibrate(averaged["logits"].to_numpy().astype(np.float64)), axis=1)
    prior = judged.mean(axis=0) if len(judged) else np.full(len(LABELS), 1 / len(LABELS))
    known = dict(zip(averaged["id"], judged, strict=True)) | rows.ruled
    assert {c.id for c in rows.conversations} <= set(known), "a conversation was not judged"
    table = np.clip(np.array([known.get(identity, prior) for identity in rows.ids]), FLOOR, None)
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def write_submission(path: Path, ids: Sequence[str], table: np.ndarray) -> None:
    """Write `ids` and their probabilities [rows, 3] to `path`, which appears whole and only if it passes the check."""
    partial = path.with_name(f".{path.name}.partial")
    columns = {"id": pl.Series(ids, dtype=pl.String), **{name: table[:, k] for k, name in enumerate(WINNERS)}}
    pl.DataFrame(columns).write_csv(partial)
    check_submission(partial, ids)
    partial.replace(path)


def check_submission(path: Path, ids: Sequence[str]) -> None:
    """Raise one `UserError` with all that would make Kaggle, or MLE-bench's grader, refuse the file.

    Its rules (openai/mle-bench, lmsys-chatbot-arena/grade.py): these columns, these ids, numbers in [0, 1], rows that
    sum to one at six decimals. Stricter than it: the ids stand in the order of the test file.
    """
    rows = read_csv(path, infer_schema=False)
    if rows.columns != COLUMNS:
        raise UserError(f"{path} has the columns {rows.columns}, expected {COLUMNS}")
    problems = []
    if rows["id"].to_list() != list(ids):
        missing, foreign = set(ids) - set(rows["id"]), set(rows["id"]) - set(ids)
        problems.append(
            f"{len(rows)} ids, expected {len(ids)} in the order of the test file "
            f"({len(missing)} missing, such as {sorted(missing)[:NAMED]}; {len(foreign)} foreign)"
        )
    table = rows.select(pl.col(WINNERS).cast(pl.Float64, strict=False)).to_numpy()
    numbers = np.isfinite(table).all(axis=1)
    sums = np.abs(table.sum(axis=1) - 1) <= SUM_TOLERANCE
    for what, right in (
        ("not a number", numbers),
        ("not within [0, 1]", ~numbers | ((table >= 0) & (table <= 1)).all(axis=1)),
        ("not of sum one", ~numbers | sums),
    ):
        if not right.all():
            problems.append(f"{(~right).sum()} rows {what}, such as {rows.filter(~right).rows()[0]}")
    if problems:
        raise UserError(f"{path} is not a submission:\n" + "\n".join(f"  - {problem}" for problem in problems))
