"""The prediction sets beside a submission: the labels that the judge cannot rule out, for every row."""

from collections.abc import Sequence
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
    thresholds: Sequence[Thresholds | None],
    coverage: float,
) -> None:
    """Write `<output>.sets.csv` with the set of every row, such as a|tie; nothing where a judge has no `thresholds`.

    `table`: probabilities [rows, labels] in the order of `rows.ids`, `scores`: what was judged, one row an order, each
    row's `turn` the place of its judge. A row that was judged in one order has the threshold of one. What nobody could
    read may be anything.
    """
    path = set_list(output)
    path.unlink(missing_ok=True)  # of an earlier submission
    known = [of for of in thresholds if of is not None]
    if len(known) < len(thresholds):
        return
    judged = {
        id: known[turn].least(coverage, orders) for id, turn, orders in scores.group_by("id", "turn").len().rows()
    }
    ruled = dict.fromkeys(rows.ruled, known[0].least(coverage, orders=2))
    least_of = judged | ruled
    least = [least_of.get(id, 0.0) for id in rows.ids]
    labels = LABELS[: table.shape[1]]
    sets = ["|".join(set_labels(inside, labels)) for inside in sets_of(table, np.array(least))]
    partial = path.with_name(f".{path.name}.partial")
    pl.DataFrame({"id": pl.Series(rows.ids, dtype=pl.String), "set": pl.Series(sets, dtype=pl.String)}).write_csv(
        partial
    )
    partial.replace(path)
