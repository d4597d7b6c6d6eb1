"""Reading a store: what every reader may rely on. A single flipped bit is noticed."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from core.artefacts.manifest import read_manifest
from core.errors import UserError
from core.store.leaks import NAMED, check_leaks
from core.store.parts import Part, list_parts
from core.store.rows import LOGITS, key
from core.store.seen import read_seen


def read_parts(folder: Path) -> pl.DataFrame:
    """All rows of a store, finished or not, in `LOGITS` or `REWARDS`.

    Raises `UserError` where a part is damaged, foreign or of another making than the rest, and where a key is double.
    """
    parts = list_parts(folder)
    if not parts:
        raise UserError(f"{folder} holds no parts: run the teacher stage, or check the path")
    if mixed := mixed_parts(parts):
        raise UserError(mixed[0])
    rows = pl.concat([part.checked() for part in parts], rechunk=False)
    if double := double_keys(rows):
        raise UserError(f"{folder}: {double}")
    return rows


def mixed_parts(parts: Sequence[Part]) -> list[str]:
    """What keeps `parts` from being one store: a sentence for each that was made differently from those before it."""
    problems, of_fold = [], dict[int, Part]()
    for part in parts:
        first = of_fold.setdefault(part.origin.writer, part)
        for other in (parts[0], first):
            if differences := part.origin.differences(other.origin):
                told = "; ".join(f"{name}: {there!r} here, {now!r} there" for name, there, now in differences)
                problems.append(
                    f"{part.path} was made differently from {other.path.name} ({told}): move away the one that does "
                    "not belong here, or score anew with overwrite=true"
                )
                break
    return problems


def double_keys(rows: pl.DataFrame) -> str | None:
    """What is wrong where rows share a key, with some of the keys, or None."""
    keys = key(rows.columns)
    # Two rows of one conversation differ in a column of two values: ids within each are the smaller thing to compare.
    groups = rows.select(keys).partition_by(keys[1:])
    if all(group["id"].n_unique() == len(group) for group in groups):
        return None
    double = rows.select(keys).filter(pl.struct(keys).is_duplicated()).unique(maintain_order=True)
    return (
        f"{len(double)} keys ({', '.join(keys)}) have more than one row, such as {double.head(NAMED).rows()}: "
        "a part was copied, or two runs wrote at once; score anew with overwrite=true"
    )


def read_logits(folder: Path, remedy: str) -> pl.DataFrame:
    """All rows of a finished store, schema `LOGITS`, after the checks of `read_parts` and `check_leaks`.

    Raises `UserError` where it is missing or unfinished, with `remedy`, or where a check fails.
    """
    read_manifest(folder, "teacher", remedy)
    rows = read_parts(folder)
    if rows.schema != LOGITS:
        raise UserError(f"{folder} holds columns {rows.columns}, not soft logits: {remedy}")
    check_leaks(rows, read_seen(folder, rows["judge_fold"].unique()))
    return rows
