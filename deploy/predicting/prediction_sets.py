"""The prediction sets beside a submission: the labels that the judge cannot rule out, for every row."""

from pathlib import Path

import numpy as np
import polars as pl

from core.records import LABELS
from deploy.predicting.outputs import set_list
from deploy.predicting.unlabelled import Unlabelled
from eval.conformal import Thresholds, set_labels, sets_of


def write_sets(
    output: Path,
    rows: Unlabelled,
    scores: pl.DataFrame,
    table: np.ndarray,
    thresholds: Thresholds | None,
    coverage: float,
) -> None:
    """Write `<output>.sets.csv` with the set of every row, such as a|tie; nothing where there are no `thresholds`.

    `table`: probabilities [rows, labels] in the order of `rows.ids`, `scores`: what was judged, one row an order. A row
    that was judged in one order has the threshold of one. What nobody could read may be anything.
    """
    path = set_list(output)
    path.unlink(missing_ok=True)  # of an earlier submission
    if thresholds is None:
        return
    orders = dict(scores.group_by("id").len().iter_rows())
    whole = set(rows.ids) - orders.keys() - rows.ruled.keys()
    least = [0.0 if id in whole else thresholds.least(coverage, orders.get(id, 2)) for id in rows.ids]
    labels = LABELS[: table.shape[1]]
    sets = ["|".join(set_labels(inside, labels)) for inside in sets_of(table, np.array(least))]
    partial = path.with_name(f".{path.name}.partial")
    pl.DataFrame({"id": pl.Series(rows.ids, dtype=pl.String), "set": pl.Series(sets, dtype=pl.String)}).write_csv(
        partial
    )
    partial.replace(path)
