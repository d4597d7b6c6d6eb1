"""JSON Lines: one object a line; a line that is none is the problem of its row."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from core.data.files.compression import open_unpacked
from core.data.files.rows import SHOWN, Row, shown

GOES_ON = (b"{", b"[", b":", b",")  # how a line ends where an object is spread over several


def rows(path: Path) -> Iterator[Row]:
    """The objects. A row's line is the line in the file; blank ones are no rows."""
    for line, raw in _lines(path):
        try:
            cells = json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            yield Row(line, {}, f"not JSON: {shown(raw[:SHOWN])} ({str(error)[:SHOWN]})")
            continue
        yield Row(line, cells) if isinstance(cells, dict) else Row(line, {}, f"not an object: {shown(cells)}")


def is_lines(path: Path, named_so: bool) -> bool:
    """Whether each line holds an object, as far as the first two tell. The file is known to begin with one.

    An only line may be a row or a whole table: that is for the file's name to say.
    """
    first, *second = [raw.strip() for _, raw in islice(_lines(path), 2)]
    if not second:
        return named_so
    return _is_json(first) or (second[0].startswith(b"{") and not first.endswith(GOES_ON))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open_unpacked(path) as file:
        yield from ((line, raw) for line, raw in enumerate(file, 1) if raw.strip())
