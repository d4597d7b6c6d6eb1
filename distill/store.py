"""The soft-logits store: parquet parts, each written whole or not at all, each saying what made it.

A part carries the scorer's identity in its parquet metadata, so a run that goes on after a kill adds only to parts of
its own making, and knows by (id, order, judge_fold) what is done.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from distill.runs import differing_fields, read_manifest
from distill.scoring import SCORES, swap_average

STORE = pl.Schema({**SCORES, "judge_fold": pl.Int32(), "in_sample": pl.Boolean()})
KEY = ["id", "order", "judge_fold"]
IDENTITY = "distill."  # prefix of our keys in the parquet metadata


class LogitsWriter:
    """Appends scored rows to `folder`. `done` holds the keys that are there already.

    Raises `ValueError` where parts in `folder` were made by another identity (teacher, prompt, data, engine).
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]):
        self.folder, self.identity = folder, dict(identity)
        folder.mkdir(parents=True, exist_ok=True)
        self.parts = sorted(folder.glob("part-*.parquet"))
        for part in self.parts:
            if differences := differing_fields(part_identity(part), self.identity):
                raise ValueError(
                    f"{part} was made differently:\n"
                    + "\n".join(f"  - {name}: there {there!r}, now {now!r}" for name, there, now in differences)
                    + f"\n  choose another teacher.name, or replace the logits in {folder} with overwrite=true"
                )
        self.done = set(pl.read_parquet(self.parts, columns=KEY).rows()) if self.parts else set()

    def append(self, rows: pl.DataFrame) -> Path:
        """Write `rows` (schema `STORE`) as the next part: to a hidden file, synced, then renamed."""
        assert rows.schema == STORE, rows.schema
        part = self.folder / f"part-{len(self.parts):05d}.parquet"
        partial = part.with_name(f".{part.name}.partial")
        rows.write_parquet(partial, metadata={IDENTITY + name: value for name, value in self.identity.items()})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(part)
        self.parts.append(part)
        self.done |= set(rows.select(KEY).rows())
        return part


def part_identity(part: Path) -> dict[str, str]:
    """What the part's metadata says of the scorer that made it. Raises `ValueError` for a file that is no part."""
    try:
        metadata = pl.read_parquet_metadata(part)
    except pl.exceptions.ComputeError as error:
        raise ValueError(
            f"{part} is not a readable parquet file ({error}): delete it, the stage scores its rows again"
        ) from error
    return {name.removeprefix(IDENTITY): value for name, value in metadata.items() if name.startswith(IDENTITY)}


def read_logits(folder: Path, remedy: str) -> pl.DataFrame:
    """All rows of a finished store, schema `STORE`. Raises `ValueError` where it is missing or unfinished."""
    read_manifest(folder, "teacher", remedy)
    return pl.read_parquet(sorted(folder.glob("part-*.parquet"))).cast(STORE)


def training_targets(logits: pl.DataFrame, in_fold: bool) -> dict[str, list[float]]:
    """id -> logits [a, b, tie]: the mean over orders and judges. In-sample rows count only with `in_fold`."""
    usable = logits if in_fold else logits.filter(~pl.col("in_sample"))
    averaged = swap_average(usable)
    return dict(zip(averaged["id"].to_list(), averaged["logits"].to_list(), strict=True))
