"""Raw rows, as a file holds them, and where they come from."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

SURROGATES = re.compile("[\ud800-\udfff]")
ROWS_AT_ONCE = 1024
SHOWN = 80


class Row(NamedTuple):
    """A raw row. `line` counts records from 1; a CSV's header is record 1, so its first row is 2."""

    line: int
    cells: dict[str, Any]
    problem: str | None = None  # why it cannot be read


@dataclass(frozen=True)
class Source:
    """Rows to read. `columns` are those not ignored; `identity` changes when the data do; messages call it `where`."""

    name: str
    columns: list[str]
    rows: Callable[[], Iterator[Row]]
    identity: dict[str, Any]
    where: str = ""


def shown(value: Any) -> str:
    """A value as messages quote it: escaped, and shortened."""
    text = ascii(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
