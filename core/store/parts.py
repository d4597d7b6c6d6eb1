"""The files of a store: parquet parts, each written whole or not at all, each saying what made it and what it holds.

`part-<judge fold>-<number>.parquet` holds rows of one judge; its parquet metadata has the identity of the scorer, the
judge, and a sha256 over the rows. Whoever writes a fold holds its lock. What the rows mean is `distill.store`'s matter.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from core import locks
from core.artefacts.contents import MANIFEST
from core.artefacts.identity import differing_fields
from core.errors import REMEDIES, UserError

NO_FOLD = -1  # a judge that belongs to no fold: a ready-made model, or what was fitted to all folds
NAME = re.compile(r"part-(x|\d{2,})-(\d{5,})\.parquet")
IDENTITY, JUDGE, WRITER, ROWS = "distill.identity", "distill.judge", "distill.judge_fold", "distill.rows"
REPLACES = "distill.replaces"
AGAIN = "delete it (and manifest.json, where there is one): the teacher stage scores its rows again"
ENCODINGS = {  # both orders lie side by side: ids are stored as deltas to the row above, floats by the place of a byte
    "id": "DELTA_BYTE_ARRAY",
    "logits.list.element": "BYTE_STREAM_SPLIT",
    "rewards.list.element": "BYTE_STREAM_SPLIT",
    "outside": "BYTE_STREAM_SPLIT",
}
ROW_GROUP = 2**18


@dataclass(frozen=True)
class Origin:
    """What made a part. `identity` is one for the whole store, `judge` one for each `writer`: the fold of a teacher's
    judge, or one of the processes that share a judge's work.
    """

    identity: dict[str, str]
    judge: str
    writer: int
    columns: dict[str, str]

    def differences(self, now: "Origin") -> list[tuple[str, Any, Any]]:
        """(field, value there, value now) for all that keeps the two from lying in one store."""
        there, here = ({**o.identity, "columns": o.columns} for o in (self, now))
        if self.writer == now.writer:
            there, here = {**there, "judge": self.judge}, {**here, "judge": now.judge}
        return differing_fields(there, here)

    def metadata(self) -> dict[str, str]:
        identity = json.dumps(self.identity, sort_keys=True)
        return {IDENTITY: identity, JUDGE: self.judge, WRITER: str(self.writer)}


@dataclass(frozen=True)
class Part:
    """One parquet file of a store. `replaces` names the parts whose rows a compacted part took over."""

    path: Path
    number: int
    origin: Origin
    height: int
    replaces: tuple[str, ...]
    metadata: dict[str, str]

    def read(self, columns: list[str]) -> pl.DataFrame:
        """Some columns, checked by parquet's page checksums alone. Raises `UserError` where they are damaged."""
        return _read(self.path, columns)[0]

    def checked(self) -> pl.DataFrame:
        """All rows. Raises `UserError` where they are not those that were written."""
        return read_checked(self.path)


def columns_of(schema: pl.Schema) -> dict[str, str]:
    """Column -> type in words, as differences are reported."""
    return {name: str(kind) for name, kind in schema.items()}


def token(judge_fold: int) -> str:
    """A judge's fold as file names spell it."""
    return "x" if judge_fold == NO_FOLD else f"{judge_fold:02d}"


def part_path(folder: Path, judge_fold: int, number: int) -> Path:
    return folder / f"part-{token(judge_fold)}-{number:05d}.parquet"


def list_parts(folder: Path) -> list[Part]:
    """The parts of `folder` by fold and number, without those whose rows a compacted part took over.

    Raises `UserError` naming a parquet file that is foreign or damaged.
    """
    parts = [open_part(path) for path in part_files(folder)]
    replaced = {name for part in parts for name in part.replaces}
    kept = [part for part in parts if part.path.name not in replaced]
    return sorted(kept, key=lambda part: (part.origin.writer, part.number))


def part_files(folder: Path) -> list[Path]:
    """Every parquet file of `folder` that is or claims to be a part, foreign ones too."""
    return [path for path in sorted(folder.glob("*.parquet")) if not path.name.startswith((".", "seen-"))]


def open_part(path: Path) -> Part:
    """What the metadata of the part at `path` tells. Raises `UserError` for a file that is foreign or damaged."""
    foreign = f"{path} is not a part of this store: move it out of the folder, which holds only what the stage wrote"
    name = NAME.fullmatch(path.name)
    if not name:
        raise UserError(foreign)
    with readable(path), pq.ParquetFile(path) as file:
        found = file.schema_arrow
        metadata = {k.decode(): v.decode() for k, v in (found.metadata or {}).items()}
        if {IDENTITY, JUDGE, WRITER, ROWS} - set(metadata) or token(int(metadata[WRITER])) != name[1]:
            raise UserError(foreign)
        empty = pa.Table.from_batches([], schema=found.remove_metadata())  # empty_table() would import pandas
        columns = columns_of(pl.DataFrame(empty).schema)
        origin = Origin(json.loads(metadata[IDENTITY]), metadata[JUDGE], int(metadata[WRITER]), columns)
        replaces = tuple(json.loads(metadata.get(REPLACES, "[]")))
        return Part(path, int(name[2]), origin, file.metadata.num_rows, replaces, metadata)


def tidy(folder: Path, judge_fold: int) -> list[Part]:
    """The parts of the whole store, after finishing what a killed process of this fold left: its lock must be held."""
    for stale in (*folder.glob(f".part-{token(judge_fold)}-*.partial"), *folder.glob(f".seen-{token(judge_fold)}.*")):
        stale.unlink()
    parts = list_parts(folder)
    for part in parts:
        if part.origin.writer == judge_fold:
            for name in part.replaces:
                (folder / name).unlink(missing_ok=True)
    return parts


def publish(rows: pl.DataFrame, path: Path, metadata: Mapping[str, str], replace: bool = False) -> None:
    """Write `rows` to `path`, on disk when this returns: to a hidden file, synced, renamed, the folder synced.

    Whoever is killed in between leaves no file of that name. An existing file is taken over only with `replace`; that
    nobody else makes one meanwhile is what the fold's lock is for. Raises `UserError` where the file system refuses.
    """
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({**metadata, ROWS: rows_hash(rows)}),
        buffer,
        compression="zstd",
        row_group_size=ROW_GROUP,
        use_dictionary=[name for name in ("order", "response") if name in rows.columns],
        column_encoding={name: kind for name, kind in ENCODINGS.items() if name.split(".")[0] in rows.columns},
        write_statistics=False,  # nobody filters by them
        write_page_checksum=True,
    )
    assert replace or not path.exists(), path
    partial = path.with_name(f".{path.name}.partial")
    with explained(path.parent):
        try:
            with partial.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        finally:
            with suppress(OSError):  # why the part could not be written is told, not why its remains cannot go
                partial.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def rows_hash(rows: pl.DataFrame) -> str:
    """sha256 hex over column names, types and values, whatever the chunks, the encoding and the compression."""
    digest = hashlib.sha256()
    for column in rows.iter_columns():
        digest.update(f"{column.name} {column.dtype} {len(column)}\n".encode())
        for buffer in _buffers(column):
            digest.update(buffer)
    return digest.hexdigest()


def _buffers(column: pl.Series) -> Iterator[bytes | memoryview]:
    """Where the nulls are, then the values: lengths before what they delimit, little-endian numbers, UTF-8 bytes."""
    yield column.is_null().to_numpy().data
    values = column.drop_nulls()
    if isinstance(column.dtype, pl.String):
        yield values.str.len_bytes().to_numpy().data
        yield values.str.join("").item().encode()
    elif isinstance(column.dtype, pl.List):
        yield values.list.len().to_numpy().data
        yield from _buffers(values.explode(empty_as_null=False))
    elif isinstance(column.dtype, pl.Array):
        yield from _buffers(values.explode(empty_as_null=False))
    else:
        yield np.ascontiguousarray(values.to_numpy()).data


def read_checked(path: Path) -> pl.DataFrame:
    """The rows at `path`. Raises `UserError` where they are damaged, or not those that `publish` wrote there."""
    rows, digest = _read(path)
    if rows_hash(rows) != digest:
        raise UserError(f"{path} does not hold what was written to it (the sha256 of its rows differs): {AGAIN}")
    return rows


def _read(path: Path, columns: list[str] | None = None) -> tuple[pl.DataFrame, str]:
    """Rows whose pages have the right checksums, and the digest that the file gives for all of its rows."""
    with readable(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(columns)
        table.validate(full=True)  # polars takes it on trust that Arrow's strings are UTF-8
        rows = pl.DataFrame(table.replace_schema_metadata(None))  # where damage would make polars panic
        return rows, (file.schema_arrow.metadata or {}).get(ROWS.encode(), b"").decode()


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into a `UserError` that says what happened, what stays and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}; "
            f"the {len(part_files(folder))} finished parts stay: "
            f"{REMEDIES.get(error.errno or 0, 'fix the cause')}, then rerun the same command"
        ) from error


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what can go wrong with reading the parquet file `path` into a `UserError` that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"{path} disappeared while being read (was the store compacted?): rerun the same command"
        ) from error
    except (OSError, pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # Arrow's own complaints have none
            raise UserError(
                f"{path} cannot be read: {error.strerror}; give this user permission, then rerun"
            ) from error
        raise UserError(f"{path} is cut short or damaged ({error}): {AGAIN}") from error


def locked(folder: Path, judge_fold: int) -> AbstractContextManager[None]:
    """Hold the lock of one fold. Raises `UserError` where another process holds it."""
    return locks.locked(folder / f".lock-{token(judge_fold)}", folder, f"fold {token(judge_fold)}")


def clear(folder: Path) -> None:
    """Remove what a teacher stage wrote into a store, and nothing else. Raises `UserError` where one is writing."""
    own = [path for path in folder.glob("*.parquet") if NAME.fullmatch(path.name) or path.name.startswith("seen-")]
    own += [*folder.glob(".part-*.partial"), *folder.glob(".seen-*.partial"), folder / MANIFEST]
    folds = {match[1] for path in own if (match := NAME.fullmatch(path.name))}
    folds |= {path.name.removeprefix(".lock-") for path in folder.glob(".lock-*")}
    with ExitStack() as stack:
        for fold in sorted(folds):
            stack.enter_context(locked(folder, NO_FOLD if fold == "x" else int(fold)))
        for path in own:
            path.unlink(missing_ok=True)
