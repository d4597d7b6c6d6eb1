"""Write the file that a source becomes, whole or not at all."""

import hashlib
from io import BytesIO
from pathlib import Path

import polars as pl
from polars import selectors

from core.errors import UserError
from proof.sources.source import Rows, Source


def make(source: Source, originals: Path, output: Path) -> int:
    """Make the source's file below `output` and give its number of rows.

    Raises `UserError` where another file stands in its place.
    """
    table = as_table(source.rows(source.checkout(originals)))
    assert digest(table) == source.digest, f"{source.name}: measured on {source.digest}, made {digest(table)}"
    path = source.path(output)
    content = table.write_csv().encode() if path.suffix == ".csv" else parquet(table)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    elif path.read_bytes() != content:
        raise UserError(f"{path} is there with other content: move it away, or choose another folder")
    return len(table)


def as_table(rows: Rows) -> pl.DataFrame:
    """Rows as a table; numbers that are not whole are single."""
    return pl.DataFrame([*rows], infer_schema_length=None).with_columns(selectors.float().cast(pl.Float32))


def digest(table: pl.DataFrame) -> str:
    """The SHA-256 of the table as CSV, whichever format keeps it."""
    return hashlib.sha256(table.write_csv().encode()).hexdigest()


def parquet(table: pl.DataFrame) -> bytes:
    written = BytesIO()
    table.write_parquet(written, compression_level=19)
    return written.getvalue()
