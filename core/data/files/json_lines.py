"""JSON Lines: one object a line; a line that is none is the problem of its row."""

import json
from collections.abc import Iterator
from pathlib import Path

from core.data.files.rows import SHOWN, Row, shown


def columns(path: Path) -> list[str]:
    """Every key of any object, in the order in which they appear."""
    return list(dict.fromkeys(name for row in rows(path) for name in row.cells))


def rows(path: Path) -> Iterator[Row]:
    """The objects. A row's line is the line in the file; blank ones are no rows."""
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
