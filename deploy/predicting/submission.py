"""A submission: probabilities or a winner for every row, once and in its place, checked as the contest checks it.

The LMSYS contest wants the probabilities of three labels, measured by log loss. WSDM Cup 2025, whose data have no ties,
wants the winner alone, measured by accuracy.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import softmax

from core.data.layouts.votes import WINNERS
from core.errors import UserError
from core.labels import Labels, among
from core.records import LABELS
from core.scoring import mean_logits
from core.tables import read_csv
from deploy.predicting.unlabelled import NAMED, Unlabelled

COLUMNS = ["id", *WINNERS]
VERDICTS = ("model_a", "model_b")  # in the column `winner`
FLOOR = 1e-9  # of a probability: the metric takes logarithms
SUM_TOLERANCE = 1e-6


def probabilities(
    rows: Unlabelled,
    scores: pl.DataFrame,
    recalibrations: Sequence[Callable[[np.ndarray], np.ndarray]],
    labels: Labels = LABELS,
) -> np.ndarray:
    """float64 [rows, labels] in the order of `rows.ids`: the softmax of the recalibrated mean over the orders known.

    `scores` has columns id, logits and turn, one row an order, all those of an id by one judge: its `turn` is the place
    of its recalibration. What nobody judged gets the prior: the mean over all that was judged, which for a calibrated
    judge is how often people vote so; without any the labels are equally likely. Without ties, a rule says how a and b
    share what is not a tie.
    """
    averaged = scores.group_by("id", maintain_order=True).agg(mean_logits(), pl.col("turn").first())
    logits = among(averaged["logits"].to_numpy(), labels).astype(np.float64)
    for turn, recalibrate in enumerate(recalibrations):
        own = (averaged["turn"] == turn).to_numpy()
        logits[own] = recalibrate(logits[own])
    judged = softmax(logits, axis=1)
    prior = judged.mean(axis=0) if len(judged) else np.full(len(labels), 1 / len(labels))
    ruled = {identity: among(np.array(rule), labels) for identity, rule in rows.ruled.items()}
    known = dict(zip(averaged["id"], judged, strict=True)) | ruled
    assert {c.id for c in rows.conversations} <= set(known), "a conversation was not judged"
    table = np.clip(np.array([known.get(identity, prior) for identity in rows.ids]), FLOOR, None)
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def write_submission(path: Path, ids: Sequence[str], table: np.ndarray) -> None:
    """Write `ids` and their probabilities [rows, labels] to `path`, which appears whole and only once it is checked."""
    partial = path.with_name(f".{path.name}.partial")
    winners = WINNERS[: table.shape[1]]
    columns = {"id": pl.Series(ids, dtype=pl.String), **{name: table[:, k] for k, name in enumerate(winners)}}
    pl.DataFrame(columns).write_csv(partial)
    check_submission(partial, ids, winners)
    partial.replace(path)


def write_verdicts(path: Path, ids: Sequence[str], table: np.ndarray) -> None:
    """Write `ids` and the winner of each, by its probabilities [rows, 2], to `path`, which appears whole.

    Of equal ones it is model_a: the contest has no other word for them.
    """
    partial = path.with_name(f".{path.name}.partial")
    winners = np.array(VERDICTS)[table.argmax(axis=1)]
    pl.DataFrame({"id": pl.Series(ids, dtype=pl.String), "winner": winners}).write_csv(partial)
    partial.replace(path)


def check_submission(path: Path, ids: Sequence[str], winners: Sequence[str] = WINNERS) -> None:
    """Raise one `UserError` with all that would make Kaggle, or MLE-bench's grader, refuse the file.

    Its rules (openai/mle-bench, lmsys-chatbot-arena/grade.py): these columns, these ids, numbers in [0, 1], rows that
    sum to one at six decimals. Stricter than it: the ids stand in the order of the test file. `winners`: its columns of
    probabilities, two where there are no ties.
    """
    rows = read_csv(path, infer_schema=False)
    if rows.columns != (expected := ["id", *winners]):
        raise UserError(f"{path} has the columns {rows.columns}, expected {expected}")
    problems = []
    if rows["id"].to_list() != list(ids):
        missing, foreign = set(ids) - set(rows["id"]), set(rows["id"]) - set(ids)
        problems.append(
            f"{len(rows)} ids, expected {len(ids)} in the order of the test file "
            f"({len(missing)} missing, such as {sorted(missing)[:NAMED]}; {len(foreign)} foreign)"
        )
    table = rows.select(pl.col(winners).cast(pl.Float64, strict=False)).to_numpy()
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
