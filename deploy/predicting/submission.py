"""A submission: the probabilities of every row, once and in its place, checked as the contest checks it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import softmax

from core.data.columns import WINNERS
from core.errors import UserError
from core.records import LABELS
from core.scoring import swap_average
from core.tables import read_csv
from deploy.predicting.unlabelled import NAMED, Unlabelled

COLUMNS = ["id", *WINNERS]
FLOOR = 1e-9  # of a probability: the metric takes logarithms
SUM_TOLERANCE = 1e-6


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
