"""What a user is told of a prediction: unreadable rows, rows that the judge learned from, rows judged in one order."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from core.data.collecting import kinds
from core.data.layouts.layout import IDS
from core.errors import UserError
from core.labels import Labels, among
from core.provenance import read_learned
from core.records import Conversation
from deploy.predicting.outputs import JUDGES, ONE_ORDER, judge_list, one_order_list, unreadable_list
from deploy.predicting.unlabelled import Unlabelled
from eval.second_opinions import margin

log = logging.getLogger(__name__)


def tell_unreadable(unreadable: pl.DataFrame, rows: int, most: float, output: Path, *, fate: str, form: str) -> None:
    """Log the `unreadable` rows (`REJECTED`) of all `rows`, and list them beside the output.

    `fate` is what becomes of them, `form` how they should look. Raises `UserError` where they are all rows or a larger
    share than `most`: most likely the file is laid out otherwise than it should be.
    """
    path = unreadable_list(output)
    path.unlink(missing_ok=True)  # of an earlier output
    if unreadable.is_empty():
        return
    unreadable.write_csv(path)
    first, count = unreadable.row(0, named=True), len(unreadable)
    told = f"{kinds(unreadable)}, such as line {first['line']}, id {first['id']}: {first['reason']}"
    if count > most * rows or count == rows:
        raise UserError(
            f"{count:,} of {rows:,} rows cannot be read, data.max_rejected={most:g}: {told}; {form}. All are in {path}"
        )
    log.warning("%d rows cannot be read and %s: %s; all are listed in %s", count, fate, told, path)


def tell_made_up(rows: Unlabelled) -> None:
    """Warn where the file has no ids: who joins the submission to it by them has to know."""
    if rows.id_column is None:
        log.warning("the input has no column of ids (%s): those written are hashes of the texts", ", ".join(IDS))


def tell_learned(conversations: Sequence[Conversation], model: Path) -> None:
    """Warn of rows that the judge, or its teachers, learned from: it is surer of them than of new ones."""
    try:
        found = read_learned(model)
    except UserError as error:
        log.warning("%s", error)
        return
    if not found.is_known:
        log.warning("nobody can tell what a teacher of this judge learned from: it may know any of these conversations")
    learned = found.taught().through_teachers
    if count := sum(c.fingerprint() in learned for c in conversations):
        log.warning(
            "%d of %d conversations are among those that this judge or its teachers learned from: its answers there do "
            "not show how good it is",
            *(count, len(conversations)),
        )


def tell_judges(rows: Unlabelled, scores: pl.DataFrame, judges: Sequence[str], output: Path) -> None:
    """Log how many rows each of several `judges` had the last word on, and list whose it was of every row in a file.

    `scores`: each row's by that judge, whose place is its `turn`. Rows that a rule speaks for, and those that nobody
    could read, have nobody.
    """
    path = judge_list(output)
    path.unlink(missing_ok=True)  # of an earlier submission
    if len(judges) < 2:
        return
    turns = dict(scores.select("id", "turn").iter_rows())
    by = [judges[turns[id]] if id in turns else None for id in rows.ids]
    table = {"id": pl.Series(rows.ids, dtype=pl.String), "judge": pl.Series(by, dtype=pl.String)}
    pl.DataFrame(table).select(JUDGES).write_csv(path)
    told = ", ".join(f"{by.count(judge):,} by {judge}" for judge in judges)
    log.info("judged last: %s; %s says who judged which row", told, path)


def tell_left_out(rows: Unlabelled, scores: pl.DataFrame, labels: Labels, output: Path) -> None:
    """Log how many conversations were judged in one order only, and list them with their margins in a file."""
    path = one_order_list(output)
    path.unlink(missing_ok=True)
    again = scores.filter(pl.col("order") == "ba")["id"].implode()
    once = scores.filter(pl.col("order") == "ab", ~pl.col("id").is_in(again))
    if len(once):
        margins = margin(among(once["logits"].to_numpy(), labels))
        once.select("id", margin=margins).select(ONE_ORDER).write_csv(path)
        low, median, high = np.quantile(margins, (0, 0.5, 1))
        log.info(
            "%d of %d conversations (%.0f%%) were judged in one order only; their margins, between the two likeliest "
            "labels: %.3f to %.3f, median %.3f; all are listed in %s",
            *(len(once), len(rows.conversations), 100 * len(once) / len(rows.conversations), low, high, median, path),
        )
