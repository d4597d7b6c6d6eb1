"""The table of file formats: which module reads a file, told by its first bytes and else by its suffix."""

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from core.data.files import delimited, json_lines, json_values, parquet
from core.data.files.compression import SUFFIXES, compression_of, without_compression
from core.data.files.rows import Row

OBJECT = re.compile(rb'\s*\{\s*["}]')
ARRAY = re.compile(rb"\s*\[\s*[{\]]")
LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Format:
    """Files of one format: how they end and begin, their columns, and their rows from the first."""

    name: str
    suffixes: tuple[str, ...]
    holds: Callable[[Path, bytes], bool]  # told from a file and its first bytes: it can be of no other format
    columns: Callable[[Path], list[str]] | None  # None: the rows tell
    rows: Callable[[Path], Iterator[Row]]


def _is_json(path: Path, head: bytes) -> bool:
    return bool(ARRAY.match(head) or (OBJECT.match(head) and not json_lines.is_lines(path, suffix_of(path) in LINES)))


DELIMITED = Format("CSV", (".csv", ".tsv"), lambda path, head: False, delimited.columns, delimited.rows)
FORMATS = (
    Format("parquet", (".parquet",), lambda path, head: head.startswith(b"PAR1"), parquet.columns, parquet.rows),
    Format("JSON", (".json",), _is_json, None, json_values.rows),
    Format("JSON Lines", (*LINES, ".json"), lambda path, head: bool(OBJECT.match(head)), None, json_lines.rows),
    DELIMITED,
)
KNOWN_SUFFIXES = tuple(dict.fromkeys(suffix for format in FORMATS for suffix in format.suffixes))


def suffix_of(path: Path) -> str:
    """The suffix that names the format: .csv of train.csv.gz."""
    return Path(without_compression(path.name)).suffix.lower()


def format_of(path: Path, head: bytes) -> Format | None:
    """The format in which a file that begins with `head` is read: what it holds, else what its suffix says."""
    held = (format for format in FORMATS if format.holds(path, head.removeprefix(BOM_UTF8)))
    named = (format for format in FORMATS if suffix_of(path) in format.suffixes)
    return next(chain(held, named), None)


def surprise(path: Path, format: Format) -> str | None:
    """What the file is read as, where that is not what its name says, as in `CSV, separated by tabs`; else None."""
    compression, named_compression = compression_of(path), SUFFIXES.get(path.suffix)
    separator = delimited.separator_of(path) if format is DELIMITED else None
    is_usual = separator in (None, delimited.suffix_separator(path))
    if suffix_of(path) in format.suffixes and is_usual and compression == named_compression:
        return None
    told = [format.name] if is_usual else [f"text separated by {delimited.SEPARATORS[str(separator)]}"]
    if compression != named_compression:
        told += [f"compressed by {compression}" if compression else "not compressed"]
    return ", ".join(told)
