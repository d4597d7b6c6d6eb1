"""The files and hub data sets that `data` names, as sources of raw rows.

A source gives its raw rows one by one; `core/data/parsing.py` says what they mean. What is wrong with a whole
file (columns, suffix, nothing there) is a `UserError` that lists the problems of all files at once.
"""

import csv
import glob
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from core.data.columns import KNOWN, REQUIRED, judged
from core.data.config import DataConfig
from core.data.files.formats import FORMATS
from core.data.files.hub import open_hub
from core.data.files.identity import content_hash
from core.data.files.kinds import seems
from core.data.files.rows import Row, Source
from core.errors import UserError
from core.naming import NOT_UTF8, is_utf8

DAMAGE = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)  # what a damaged file raises


def check_origin(data: DataConfig) -> None:
    """Exactly one of files, hub and simulate says where the data come from."""
    origins = {"data.files": data.files, "data.hub": data.hub, "data.simulate": data.simulate}
    given = [f"{name}={value}" for name, value in origins.items() if value is not None]
    if len(given) != 1:
        raise UserError(f"set exactly one of {', '.join(origins)}, the others to null; now {given or 'none'} is set")


def open_sources(data: DataConfig) -> list[Source]:
    """The sources of `data.files` or `data.hub`, checked as far as that goes without reading all rows.

    A source is named after its file's folder where several files lie in distinct folders, else after the file.
    Raises one `UserError` that lists what is wrong with every file.
    """
    problems: list[str] = []
    if data.hub is not None:
        file = Path(data.hub)
        found = [_open_file(file, file.stem, problems) if file.is_file() else open_hub(data.hub, problems)]
    else:
        paths = _expand(data.files or [], problems)
        found = [_open_file(path, name, problems) for path, name in zip(paths, _names(paths), strict=True)]
    usable = [judged(source, data.ignore_columns, problems) for source in found if source is not None]
    if problems:
        raise UserError("the data cannot be read:\n" + "\n".join(f"  - {p}" for p in problems))
    return usable


def input_files(data: DataConfig) -> list[Path]:
    """The files of this machine that `open_sources` reads."""
    return _expand(data.files or [], []) if data.hub is None else [Path(data.hub)]


def _expand(patterns: list[str], problems: list[str]) -> list[Path]:
    paths: dict[Path, Path] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [Path(match) for match in matches if Path(match).is_file()]
        if not files:
            problems.append(f"data.files: {pattern!r} matches no file; paths and globs count from {Path.cwd()}")
        problems += [f"data.files: {str(path)!a}: {NOT_UTF8}" for path in files if not is_utf8(str(path))]
        paths.update({path.resolve(): path for path in files})
    if not patterns:
        problems.append("data.files=[] names no file")
    return list(paths.values())


def _names(paths: list[Path]) -> list[str]:
    folders, stems = [path.resolve().parent.name for path in paths], [path.stem for path in paths]
    candidates = [folders, stems] if len(paths) > 1 else [stems]
    return next((names for names in candidates if len({*names}) == len(names)), [str(path) for path in paths])


def _open_file(path: Path, name: str, problems: list[str]) -> Source | None:
    if path.suffix not in FORMATS:
        problems.append(f"{path}: unknown suffix {path.suffix!r}; known are {', '.join(FORMATS)}")
        return None
    format = FORMATS[path.suffix]
    kind = None
    try:
        kind = seems(path, KNOWN)
        columns, first, identity = format.columns(path), next(format.rows(path), None), content_hash(path)
    except (*DAMAGE, csv.Error) as error:
        problems.append(f"{path}: {kind}" if kind else f"{path}: cannot be read as {path.suffix}: {error}")
        return None
    if kind and not {*REQUIRED} <= {*columns}:
        problems.append(f"{path}: {kind}")
        return None
    if first is None or not columns:
        state = "is empty" if first is None else f"holds no row that can be read, the first is {first.problem}"
        problems.append(f"{path}: {state}; take it out of data.files")
        return None
    return Source(name, columns, lambda: _to_the_end(path, format.rows(path)), identity, str(path))


def _to_the_end(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; where the file turns out to be damaged on the way, a `UserError` that names it."""
    line = 0
    try:
        for row in rows:
            line = row.line
            yield row
    except DAMAGE as error:
        raise UserError(f"{path} is damaged after row {line:,} ({error}): download or write it again") from error
