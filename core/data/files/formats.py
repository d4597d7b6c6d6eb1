"""The table of file formats: which suffix is read by which module."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.data.files import delimited, json_lines, parquet
from core.data.files.rows import Row


@dataclass(frozen=True)
class Format:
    """How files of one format are read: the names of their columns, and their rows from the first."""

    columns: Callable[[Path], list[str]]
    rows: Callable[[Path], Iterator[Row]]


FORMATS = {
    ".csv": Format(delimited.columns, delimited.rows),
    ".parquet": Format(parquet.columns, parquet.rows),
    ".jsonl": Format(json_lines.columns, json_lines.rows),
}
