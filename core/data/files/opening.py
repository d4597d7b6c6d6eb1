"""The files and hub data sets that `data` names, as sources of raw rows.

A source gives its raw rows one by one; `core/data/layouts/` says what they mean. What is wrong with a whole file
(suffix, damage, nothing there) is a line in a list of problems, so that all files' are told at once.
"""

import glob
import re
from pathlib import Path

from core.data.config import DataConfig
from core.data.files.compression import without_compression
from core.data.files.hub import local_folder, open_hub
from core.data.files.reading import open_table
from core.data.files.rows import Source
from core.data.public import public_folder
from core.errors import UserError
from core.naming import NOT_UTF8, is_utf8

PUBLIC_REMEDY = "; `python -m proof.sources` says where to get public sets of votes, and makes their files"
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def check_origin(data: DataConfig) -> None:
    """Exactly one of files, hub and simulate says where the data come from."""
    origins = {"data.files": data.files, "data.hub": data.hub, "data.simulate": data.simulate}
    given = [f"{name}={value}" for name, value in origins.items() if value is not None]
    if len(given) != 1:
        raise UserError(f"set exactly one of {', '.join(origins)}, the others to null; now {given or 'none'} is set")


def open_sources(data: DataConfig, problems: list[str]) -> list[Source]:
    """The sources of `data.files` or `data.hub`, checked as far as that goes without reading all rows.

    A source is named after its file's folder where several files lie in distinct folders, else after the file. The
    shards of a table are one source. What is wrong with files goes to `problems`.
    """
    if data.hub is not None:
        file = Path(data.hub)
        found = [open_table([file], _stem(file), problems) if file.is_file() else open_hub(data.hub, problems)]
    else:
        tables = _tables(_expand(data.files or [], problems))
        names = _names([files[0] for files in tables])
        found = [open_table(files, name, problems) for files, name in zip(tables, names, strict=True)]
    return [source for source in found if source is not None]


def input_files(data: DataConfig) -> list[Path]:
    """The files of this machine that `open_sources` reads."""
    if data.hub is None:
        return _expand(data.files or [], [])
    return [folder] if (folder := local_folder(data.hub)) else []


def matching(pattern: str) -> list[Path]:
    """The files that a path or a glob names, in alphabetical order."""
    matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
    return [Path(match) for match in matches if Path(match).is_file()]


def _expand(patterns: list[str], problems: list[str]) -> list[Path]:
    paths: dict[Path, Path] = {}
    for pattern in patterns:
        files = matching(pattern)
        if not files:
            remedy = PUBLIC_REMEDY if Path(pattern).is_relative_to(public_folder()) else ""
            problems.append(f"data.files: {pattern!r} matches no file; paths and globs count from {Path.cwd()}{remedy}")
        problems += [f"data.files: {str(path)!a}: {NOT_UTF8}" for path in files if not is_utf8(str(path))]
        paths.update({path.resolve(): path for path in files})
    if not patterns:
        problems.append("data.files=[] names no file")
    return list(paths.values())


def _tables(paths: list[Path]) -> list[list[Path]]:
    """The files of each table: `train-00000-of-00002.parquet` and `train-00001-of-00002.parquet` are parts of one."""
    tables: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        shard = SHARD.fullmatch(_stem(path))
        tables.setdefault((path.parent, shard[1]) if shard else (path, ""), []).append(path)
    return list(tables.values())


def _names(paths: list[Path]) -> list[str]:
    folders = [path.resolve().parent.name for path in paths]
    stems = [match[1] if (match := SHARD.fullmatch(_stem(path))) else _stem(path) for path in paths]
    candidates = [folders, stems] if len(paths) > 1 else [stems]
    return next((names for names in candidates if len({*names}) == len(names)), [str(path) for path in paths])


def _stem(path: Path) -> str:
    return Path(without_compression(path.name)).stem
