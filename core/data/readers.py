"""Preference data as people keep them: CSV, parquet, JSONL or a hub data set, in the layout of LMSYS's Kaggle contest.

A source gives its raw rows one by one; `parsing.py` says what they mean. What is wrong with a whole
file (columns, suffix, nothing there) is a `UserError` that lists the problems of all files at once.

CSV goes through Python's `csv`, not through polars: on 57,477 rows (200 MB) it is as fast, and it keeps a bad byte or
a ragged row the problem of that row, where polars refuses the file.
"""

import csv
import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from core.data.config import DataConfig
from core.data.file_kinds import seems
from core.errors import UserError
from core.naming import NOT_UTF8, inert, is_utf8
from core.tables import parquet_columns, scan_parquet

TEXTS = ("prompt", "response_a", "response_b")  # lists of texts, one a turn, as JSON or as real lists
REQUIRED = ("id", *TEXTS)
MODELS = ("model_a", "model_b")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")  # one-hot
COUNTS = ("votes_a", "votes_b", "votes_tie")  # how many people voted so
BALLOTS = "votes"  # one digit a person, as PandaLM writes them
# Where other data sets keep votes, by a column's name or by what its cells say. They are not read from there yet.
FOREIGN_VOTES = {"winner", "preference", "preferred", "chosen", "label", "vote", "human_preference", "verdict"}
FOREIGN_VOTE = {"model_a", "model_b", "tie", "tie (bothbad)", "bothbad", "both_bad"}
KNOWN = {*REQUIRED, *MODELS, *WINNERS, *COUNTS, BALLOTS}
SURROGATES = re.compile("[\ud800-\udfff]")
DAMAGE = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)  # what a damaged file raises
ROWS_AT_ONCE = 1024
SHOWN = 80


class Row(NamedTuple):
    """A raw row. `line` counts records from 1; a CSV's header is record 1, so its first row is 2."""

    line: int
    cells: dict[str, Any]
    problem: str | None = None  # why it cannot be read


@dataclass(frozen=True)
class Source:
    """Rows to read. `columns` are those not ignored; `identity` changes when the data do."""

    name: str
    columns: list[str]
    rows: Callable[[], Iterator[Row]]
    identity: dict[str, Any]


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
        found = [_open_hub(data.hub, data.ignore_columns, problems)]
    else:
        paths = _expand(data.files or [], problems)
        named = zip(paths, _names(paths), strict=True)
        found = [_open_file(path, name, data.ignore_columns, problems) for path, name in named]
    if problems:
        raise UserError("the data cannot be read:\n" + "\n".join(f"  - {p}" for p in problems))
    return [source for source in found if source is not None]


def input_files(data: DataConfig) -> list[Path]:
    """The files of this machine that `open_sources` reads."""
    return _expand(data.files or [], []) if data.hub is None else [Path(data.hub)]


def shown(value: Any) -> str:
    """A value as messages quote it: escaped, and shortened."""
    text = ascii(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


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


def _open_file(path: Path, name: str, ignored: list[str], problems: list[str]) -> Source | None:
    if path.suffix not in READERS:
        problems.append(f"{path}: unknown suffix {path.suffix!r}; known are {', '.join(READERS)}")
        return None
    list_columns, read_rows = READERS[path.suffix]
    kind = None
    try:
        kind = seems(path, KNOWN)
        columns, first, identity = list_columns(path), next(read_rows(path), None), _identity(path)
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
    usable = _usable_columns(str(path), columns, first.cells, ignored, problems)
    return Source(name, usable, lambda: _to_the_end(path, read_rows(path)), identity)


def _to_the_end(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; where the file turns out to be damaged on the way, a `UserError` that names it."""
    line = 0
    try:
        for row in rows:
            line = row.line
            yield row
    except DAMAGE as error:
        raise UserError(f"{path} is damaged after row {line:,} ({error}): download or write it again") from error


def _usable_columns(
    where: str, columns: list[str], first: Mapping[str, Any], ignored: list[str], problems: list[str]
) -> list[str]:
    usable = [name for name in columns if name not in ignored]
    if len({*columns}) < len(columns):
        problems.append(f"{where}: column names occur twice: {columns}; rename one of each")
    if missing := [name for name in REQUIRED if name not in usable]:
        problems.append(f"{where}: missing columns {missing}, found {columns}; rename those that hold {missing}")
    for group in (WINNERS, COUNTS):
        missing = [name for name in group if name not in usable]
        if 0 < len(missing) < len(group):
            problems.append(f"{where}: missing columns {missing}; add them, the votes need all of {group}")
    if BALLOTS in usable and COUNTS[0] in usable:
        problems.append(f"{where}: both {BALLOTS!r} and {COUNTS} tell the votes; list one in data.ignore_columns")
    unknown = [name for name in usable if name not in KNOWN]
    votes = [name for name in unknown if name.lower() in FOREIGN_VOTES or str(first.get(name)) in FOREIGN_VOTE]
    if votes and not {WINNERS[0], COUNTS[0], BALLOTS} & {*columns}:
        problems.append(
            f"{where}: columns {votes} seem to hold the votes, which are not read from there yet: write them as "
            f"{WINNERS}, one of them 1 and the others 0, or as {COUNTS}"
        )
        unknown = [name for name in unknown if name not in votes]
    if unknown:
        problems.append(f"{where}: unknown columns {unknown}; list them in data.ignore_columns if not needed")
    return usable


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _csv_records(path: Path) -> Iterator[list[str] | csv.Error]:
    csv.field_size_limit(2**31 - 1)  # the module's 128 kB are less than a long answer
    # A byte that is not UTF-8 becomes a lone surrogate, which valid UTF-8 never holds: `_csv_rows` finds it there.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            try:
                if record := next(reader):  # a blank line is no record
                    yield record
            except StopIteration:
                return
            except csv.Error as error:
                yield error


def _csv_columns(path: Path) -> list[str]:
    header = next(_csv_records(path), [])
    if isinstance(header, csv.Error):
        raise header
    return header


def _csv_rows(path: Path) -> Iterator[Row]:
    header = _csv_columns(path)
    for line, record in enumerate(islice(_csv_records(path), 1, None), 2):
        cells = {} if isinstance(record, csv.Error) else dict(zip(header, record, strict=False))
        if isinstance(record, csv.Error):
            yield Row(line, cells, f"not CSV: {record}")
        elif len(record) != len(header):
            yield Row(line, cells, f"not {len(header)} fields: {len(record)}, the last is {shown(record[-1])}")
        elif bad := [name for name, cell in cells.items() if not cell.isascii() and SURROGATES.search(cell)]:
            yield Row(line, cells, f"{bad[0]} is not UTF-8: {shown(cells[bad[0]])}")
        else:
            yield Row(line, cells)


def _parquet_columns(path: Path) -> list[str]:
    return parquet_columns(path)


def _parquet_rows(path: Path) -> Iterator[Row]:
    batches = scan_parquet(path).collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=True)
    cells = (row for batch in batches for row in batch.iter_rows(named=True))
    return (Row(line, row) for line, row in enumerate(cells, 1))


def _jsonl_columns(path: Path) -> list[str]:
    return list(dict.fromkeys(name for row in _jsonl_rows(path) for name in row.cells))


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                cells = json.loads(raw.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield Row(line, {}, f"not JSON: {shown(raw[:SHOWN])} ({str(error)[:SHOWN]})")
                continue
            yield Row(line, cells) if isinstance(cells, dict) else Row(line, {}, f"not an object: {shown(cells)}")


def _open_hub(hub: str, ignored: list[str], problems: list[str]) -> Source | None:
    """The split `train` of a data set of the Hugging Face hub, or of a local folder, through `datasets`.

    A file is read as one of `data.files` is, and a folder of CSV files keeps its texts: `datasets` would take the ids
    007 for the numbers 7.
    """
    path = Path(hub)
    if path.is_file():
        return _open_file(path, path.stem, ignored, problems)
    import datasets

    try:
        with inert(path) if path.exists() else nullcontext(hub) as place:
            kind = datasets.load_dataset_builder(str(place)).name
            as_text = {"converters": dict.fromkeys((*REQUIRED, *MODELS, BALLOTS), str)} if kind == "csv" else {}
            found = datasets.load_dataset(str(place), split="train", **as_text)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        problems.append(f"data.hub={hub!r}: {error}")
        return None

    def rows() -> Iterator[Row]:
        batches = found.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)
        cells = (row for batch in batches for row in batch.to_pylist())
        return (Row(line, row) for line, row in enumerate(cells, 1))

    if not len(found):
        problems.append(f"data.hub={hub!r} is empty")
    first = found[0] if len(found) else {}
    usable = _usable_columns(f"data.hub={hub!r}", found.column_names, first, ignored, problems)
    identity = {"arrow": [_identity(Path(file["filename"])) for file in found.cache_files]}
    return Source(path.name, usable, rows, identity)


READERS: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path], Iterator[Row]]]] = {
    ".csv": (_csv_columns, _csv_rows),
    ".parquet": (_parquet_columns, _parquet_rows),
    ".jsonl": (_jsonl_columns, _jsonl_rows),
}
