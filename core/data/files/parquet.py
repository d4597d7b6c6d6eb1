"""Parquet, read in batches; cells keep their types."""

from collections.abc import Iterator
from pathlib import Path

from core.data.files.compression import unpacked
from core.data.files.rows import ROWS_AT_ONCE, Row
from core.tables import parquet_columns, scan_parquet


def columns(path: Path) -> list[str]:
    """The names in the schema. Raises as polars does."""
    with unpacked(path) as file:
        return parquet_columns(file)


def rows(path: Path) -> Iterator[Row]:
    """The rows. Raises as polars does."""
    with unpacked(path) as file:
        batches = scan_parquet(file).collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=True)
        cells = (row for batch in batches for row in batch.iter_rows(named=True))
        yield from (Row(line, row) for line, row in enumerate(cells, 1))
