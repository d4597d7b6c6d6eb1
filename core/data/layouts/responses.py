"""Responses to be ranked: one row a response, or all responses to a prompt in one row, whether scored or not.

The columns are those of scored responses (`core.data.layouts.scored`); scores are left aside.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.data.files.rows import Row, shown
from core.data.layouts.asking import AROUND, asked
from core.data.layouts.layout import (
    IDS,
    BadRow,
    Cells,
    Layout,
    Names,
    Reading,
    Rejected,
    clean,
    name_in,
    named,
    shown_id,
)
from core.data.layouts.scored import MODEL, NESTED, PROMPT, RESPONSE, RESPONSES, SCORED
from core.data.layouts.table import LAYOUTS
from core.data.layouts.texts import dialogue, parsed
from core.records import Conversation

TEXTS: tuple[Names, ...] = (PROMPT, RESPONSE, RESPONSES, *AROUND)


@dataclass(frozen=True)
class Response:
    """A response and the row that it stands in. It is response a, and b, of its `conversation`."""

    line: int
    conversation: Conversation


def holds_responses(columns: Collection[str]) -> bool:
    """Whether a file of these columns holds single responses, and not pairs of them, whatever else it has."""
    paired = any(_speaks_of(columns, layout) for layout in LAYOUTS.values() if layout not in (SCORED, NESTED))
    return not paired and named(PROMPT, columns) is not None and any(named(n, columns) for n in (RESPONSE, RESPONSES))


def _speaks_of(columns: Collection[str], layout: Layout) -> bool:
    return all(named(names, columns) is not None for names in layout.texts)


def read_responses(rows: Iterable[Row], reading: Reading) -> Iterator[Response | Rejected]:
    """Every response of the rows; a row with one that cannot be read is rejected as a whole."""
    column = reading.named(IDS)
    for row in rows:
        try:
            if row.problem is not None:
                raise BadRow(row.problem)
            yield from [Response(row.line, found) for found in _responses(row.cells, reading)]
        except BadRow as problem:
            yield Rejected(row.line, shown_id(row, column), str(problem))


def _responses(cells: Cells, reading: Reading) -> Iterator[Conversation]:
    before = asked(cells, reading, PROMPT)
    name = reading.named(RESPONSE)
    for text, model in [(cells.get(name), name_in(cells, reading.named(MODEL)))] if name else _listed(cells, reading):
        if not isinstance(text, str) or not text.strip():
            raise BadRow(f"{name or reading.needed(RESPONSES)} holds no text: {shown(text)}")
        said = dialogue(PROMPT[0], [*before, ("assistant", clean(text))])
        yield Conversation("", said.prompt, said.response, said.response, model, model)


def _listed(cells: Cells, reading: Reading) -> Iterator[tuple[Any, str | None]]:
    """The responses in a list of texts, or of {response, model, ...}."""
    name = reading.needed(RESPONSES)
    found = cells.get(name)
    if isinstance(found, str):
        found = parsed(name, found)
    if not isinstance(found, list) or not found:
        raise BadRow(f"{name} is not a list of responses: {shown(found)}")
    for item in found:
        if isinstance(item, Mapping):
            yield item.get(named(RESPONSE, item) or ""), name_in(item, named(MODEL, item))
        else:
            yield item, None
