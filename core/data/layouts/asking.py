"""What is asked before a response: the prompt's column, and those for what it is about, the system, what was said."""

from collections.abc import Sequence
from typing import Any

from core.data.files.rows import shown
from core.data.layouts.layout import BadRow, Cells, Names, Reading
from core.data.layouts.texts import Message, messages, parsed

SYSTEM: Names = ("system", "system_prompt")
HISTORY: Names = ("history",)  # LLaMA-Factory: pairs of what was asked and answered before
ABOUT: Names = ("input",)  # Alpaca: what the instruction is about
AROUND = (SYSTEM, HISTORY, ABOUT)


def asked(cells: Cells, reading: Reading, names: Names) -> list[Message]:
    """The messages before the response. Raises `BadRow`, also where the prompt's column is empty."""
    name = reading.needed(names)
    if _is_empty(cells.get(name)):
        raise BadRow(f"{name} is empty: {shown(cells.get(name))}")
    return asked_if_any(cells, reading, names)


def asked_if_any(cells: Cells, reading: Reading, names: Names) -> list[Message]:
    """The messages before the response; empty where no column holds any. Raises `BadRow`."""
    name = reading.named(names)
    history = next((column for column in HISTORY if column in reading.columns and column != name), None)
    said = system(cells, reading) + ([] if history is None else _exchanged(history, cells.get(history)))
    for column in dict.fromkeys((name, reading.named(ABOUT))):
        if column is not None and not _is_empty(cells.get(column)):
            said += messages(column, cells[column], column in reading.lists)
    return said


def system(cells: Cells, reading: Reading) -> list[Message]:
    """The system's message where a column holds one. Raises `BadRow`."""
    name = reading.named(SYSTEM)
    return [] if name is None or _is_empty(cells.get(name)) else messages(name, cells[name], speaker="system")


def _exchanged(name: str, cell: Any) -> list[Message]:
    """What was asked and answered before: pairs of texts, or messages."""
    pairs = parsed(name, cell) if isinstance(cell, str) and cell else cell or []
    if not all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in pairs
    ):
        return messages(name, pairs)
    return [message for asked, answered in pairs for message in (("user", asked), ("assistant", answered))]


def _is_empty(cell: Any) -> bool:
    return cell is None or cell in ("", [])
