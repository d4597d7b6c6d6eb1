"""One table of rows from a file, or from several that hold a part of it each."""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from core.data.files.compression import beginning
from core.data.files.formats import KNOWN_SUFFIXES, Format, format_of, surprise
from core.data.files.identity import content_hash
from core.data.files.kinds import seems
from core.data.files.rows import Row, Source
from core.errors import UserError, of_file_system

log = logging.getLogger(__name__)
DAMAGE = (OSError, csv.Error, pl.exceptions.PolarsError, pl.exceptions.PanicException)  # what a damaged file raises


class Part(NamedTuple):
    """A file whose format is known."""

    path: Path
    format: Format


def open_table(paths: Sequence[Path], name: str, problems: list[str]) -> Source | None:
    """The rows of all files, one file after another; None, and lines in `problems`, where they cannot be read.

    A row's line goes on counting from file to file. The columns are those of any file.
    """
    parts: list[Part] = []
    columns: list[str] = []
    for path in paths:
        try:
            part = _recognised(path)
            columns += [name for name in _columns(part) if name not in columns]
            parts.append(part)
        except UserError as error:
            problems.append(str(error))
    if len(parts) < len(paths):
        return None
    try:
        first = next(_rows(parts), None)
    except UserError as error:
        problems.append(str(error))
        return None
    if first is None or not columns:
        state = "is empty" if first is None else f"holds no row that can be read, the first is {first.problem}"
        problems.append(f"{paths[0]}: {state}; leave it out")
        return None
    hashes = [content_hash(path) for path in paths]
    identity = hashes[0] if len(hashes) == 1 else {"files": hashes}
    return Source(name, columns, lambda: _rows(parts), identity, str(paths[0]))


def _recognised(path: Path) -> Part:
    try:
        head = beginning(path)
        format = format_of(path, head)
        odd = surprise(path, format) if format else None
    except OSError as error:
        raise UserError(of_file_system(error) or f"{path} is damaged ({error}): download or write it again") from error
    if kind := seems(head):
        raise UserError(f"{path}: {kind}")
    if format is None:
        raise UserError(f"{path}: unknown suffix {path.suffix!r}; known are {', '.join(KNOWN_SUFFIXES)}, .gz and .zst")
    if odd:
        log.info("%s is read as what it holds: %s", path, odd)
    return Part(path, format)


def _columns(part: Part) -> list[str]:
    """The names in the header or schema; without one, every key of any row in the order in which they appear."""
    path, format = part
    if format.columns is None:
        return [*dict.fromkeys(name for row in _rows([part]) for name in row.cells)]
    try:
        return format.columns(path)
    except DAMAGE as error:
        raise UserError(
            of_file_system(error)
            or f"{path}: cannot be read as {format.name}: {_brief(error)}; download or write it again"
        ) from error


def _rows(parts: Sequence[Part]) -> Iterator[Row]:
    """The rows; where a file turns out to be damaged on the way, a `UserError` that names it."""
    before = 0
    for path, format in parts:
        line = 0
        try:
            for row in format.rows(path):
                line = row.line
                yield row._replace(line=before + line) if before else row
        except DAMAGE as error:
            raise UserError(
                f"{path} is damaged after row {line:,} ({_brief(error)}): download or write it again"
            ) from error
        before += line


def _brief(error: BaseException) -> str:
    return str(error).split("\n")[0]
