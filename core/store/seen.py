"""What each judge of a store learned from: `seen-<fold>.parquet`, beside the parts."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from core.errors import UserError
from core.provenance import LEARNED, Learned
from core.store.parts import explained, publish, read_checked, rows_hash, token


def write_seen(folder: Path, judge_fold: int, learned: Learned) -> None:
    """Note what the judge of `judge_fold` learned from: seen-<fold>.parquet, as `Learned.frame` has it."""
    rows = learned.frame()
    path = seen_path(folder, judge_fold)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() or rows_hash(read_checked(path)) != rows_hash(rows):
        publish(rows, path, {}, replace=True)


def read_seen(folder: Path, judge_folds: Iterable[int]) -> pl.DataFrame:
    """judge_fold, fingerprint, directly: what these judges learned from.

    Raises `UserError` where that is not known, or was noted by a version that did not know of teachers' teachers.
    """
    rows = [pl.DataFrame(schema={"judge_fold": pl.Int32, **LEARNED})]
    for fold in judge_folds:
        path = seen_path(folder, fold)
        if not path.exists():
            raise UserError(
                f"{path} is missing, so what the judge of fold {token(fold)} learned from is unknown: "
                "run the teacher stage again with overwrite=true"
            )
        found = read_checked(path)
        if found.schema != LEARNED:
            raise UserError(
                f"{path} was written by an older version, which did not note what the judge's teachers learned from: "
                "run the teacher stage again with overwrite=true"
            )
        rows.append(found.select(pl.lit(fold, pl.Int32).alias("judge_fold"), *LEARNED))
    return pl.concat(rows)


def learned_by_judges(folder: Path, judge_folds: Iterable[int]) -> Learned:
    """What these judges of a store learned from, together."""
    return Learned.from_frame(read_seen(folder, judge_folds).select(LEARNED.names()).unique())


def seen_path(folder: Path, judge_fold: int) -> Path:
    return folder / f"seen-{token(judge_fold)}.parquet"
