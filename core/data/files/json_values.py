"""JSON in one piece: an array of objects, objects one after another, or one object that holds a list for each column.

An array is read object by object, so that a large file takes little memory. Only an object of columns is read whole.
"""

import io
import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from core.data.files.compression import open_unpacked
from core.data.files.rows import SURROGATES, Row, shown

CHUNK = 1 << 20  # characters read at once
BETWEEN = re.compile(r"[\s,]*")
CUT = 16  # characters: so near to the end of what was read an error may come from text that is cut off there


class DamagedJSON(OSError):
    """What follows cannot be read."""


def rows(path: Path) -> Iterator[Row]:
    """The objects; a row's line is its number. Raises `DamagedJSON`."""
    values = _values(path)
    if not is_array(path):
        begun = [*islice(values, 2)]
        if len(begun) == 1 and (table := _by_row(begun[0][0])):
            yield from (Row(line, cells) for line, cells in enumerate(table, 1))
            return
        values = chain(begun, values)
    for line, (value, is_utf8) in enumerate(values, 1):
        if not isinstance(value, dict):
            yield Row(line, {}, f"not an object: {shown(value)}")
        else:
            yield Row(line, value, None if is_utf8 else f"not UTF-8: {shown(value)}")


def is_array(path: Path) -> bool:
    """Whether the file begins with a bracket."""
    with open_unpacked(path) as file:
        return _Window(file).next_character() == "["


def _by_row(columns: Any) -> list[dict[str, Any]]:
    """The rows of an object of columns: lists of one length, or objects of the same keys, as pandas writes them.

    Empty where it is none.
    """
    if not isinstance(columns, dict) or not columns:
        return []
    cells = [*columns.values()]
    if all(isinstance(column, dict) and column.keys() == cells[0].keys() for column in cells):
        cells = [[column[key] for key in cells[0]] for column in cells]
    if not all(isinstance(column, list) and len(column) == len(cells[0]) for column in cells):
        return []
    return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]


def _values(path: Path) -> Iterator[tuple[Any, bool]]:
    """The values in the array, or those that follow each other, each with whether its bytes are UTF-8."""
    with open_unpacked(path) as file:
        window = _Window(file)
        in_array = window.next_character() == "["
        window.at += in_array
        while character := window.next_character():
            if in_array and character == "]":
                window.at += 1
                if rest := window.next_character():
                    raise DamagedJSON(f"{rest!r} follows the end of the array")
                return
            yield window.take_value()
        if in_array:
            raise DamagedJSON("the array is not closed")


class _Window:
    """The text of a file from where it is read, `at`, as far as it was needed."""

    decode = json.JSONDecoder().raw_decode

    def __init__(self, file: BinaryIO) -> None:
        # A byte that is not UTF-8 becomes a lone surrogate, which valid UTF-8 never holds: `take_value` finds it there.
        self.file = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
        self.text, self.at, self.is_last = "", 0, False

    def next_character(self) -> str:
        """The first one that neither is white space nor a comma; empty at the end."""
        while True:
            self.at = BETWEEN.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or self.is_last:
                return self.text[self.at : self.at + 1]
            self._read_on()

    def take_value(self) -> tuple[Any, bool]:
        """The value that begins here, and whether its bytes are UTF-8."""
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except RecursionError:
                raise DamagedJSON("too many brackets in each other") from None
            except json.JSONDecodeError as error:
                may_go_on = error.msg.startswith("Unterminated") or error.pos > len(self.text) - CUT
                if self.is_last or not may_go_on:
                    found = shown(self.text[error.pos : error.pos + CUT])
                    raise DamagedJSON(f"{error.msg}: {found}") from None
            else:
                if end < len(self.text) or self.is_last:  # else a number might go on
                    raw = self.text[self.at : end]
                    self.at = end
                    return value, raw.isascii() or not SURROGATES.search(raw)
            self._read_on()

    def _read_on(self) -> None:
        rest = self.text[self.at :]
        more = self.file.read(max(CHUNK, len(rest)))
        self.text, self.at, self.is_last = rest + more, 0, not more
