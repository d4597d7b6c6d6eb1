"""CSV and text with other separators, through Python's `csv`.

On 57,477 rows (200 MB) it is as fast as polars, and it keeps a bad byte or a ragged row the problem of that row, where
polars refuses the file.
"""

import csv
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from core.data.files.compression import open_unpacked, without_compression
from core.data.files.rows import SURROGATES, Row, shown

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "'|'"}

OPEN_QUOTE = "unexpected end of data"  # what `csv` says of one


def columns(path: Path) -> list[str]:
    """The cells of the header. Raises `csv.Error`."""
    header = next(_records(path), [])
    if isinstance(header, csv.Error):
        raise header
    return header


def rows(path: Path) -> Iterator[Row]:
    """The records below the header; cells are text."""
    header = columns(path)
    for line, record in enumerate(islice(_records(path), 1, None), 2):
        cells = {} if isinstance(record, csv.Error) else dict(zip(header, record, strict=False))
        if isinstance(record, csv.Error):
            yield Row(line, cells, f"not CSV: {record}")
        elif len(record) != len(header):
            yield Row(line, cells, f"not {len(header)} fields: {len(record)}, the last is {shown(record[-1])}")
        elif bad := [name for name, cell in cells.items() if not cell.isascii() and SURROGATES.search(cell)]:
            yield Row(line, cells, f"{bad[0]} is not UTF-8: {shown(cells[bad[0]])}")
        else:
            yield Row(line, cells)


def separator_of(path: Path) -> str:
    """What cuts the header into the most fields; where several do, what the suffix says."""
    with _text(path) as file:
        header = file.readline()

    def fields(separator: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=separator), []))
        except csv.Error:
            return 0

    usual = suffix_separator(path)
    return max([usual, *SEPARATORS], key=fields)  # the first of equals


def suffix_separator(path: Path) -> str:
    """The separator that a file of this name should have."""
    return "\t" if without_compression(path.name).endswith(".tsv") else ","


def _records(path: Path) -> Iterator[list[str] | csv.Error]:
    csv.field_size_limit(2**31 - 1)  # the module's 128 kB are less than a long answer
    separator = separator_of(path)
    with _text(path) as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        while True:
            before = reader.line_num
            try:
                if record := next(reader):  # a blank line is no record
                    yield record
            except StopIteration:
                return
            except csv.Error as error:
                lines = reader.line_num - before
                if lines > 1 and str(error) == OPEN_QUOTE:  # it holds all rows that follow
                    raise csv.Error(
                        f"a quote opens there that is not closed in the {lines:,} lines to the end"
                    ) from None
                yield error if lines == 1 else csv.Error(f"{error}, in a record of {lines:,} lines")


def _text(path: Path) -> io.TextIOWrapper:
    # A byte that is not UTF-8 becomes a lone surrogate, which valid UTF-8 never holds: `rows` finds it there.
    return io.TextIOWrapper(open_unpacked(path), encoding="utf-8-sig", errors="surrogateescape", newline="")
