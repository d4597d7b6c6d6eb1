"""What `--help` says of a command's keys: each with its present value and its explanation."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.naming import found

COLUMN = 34  # where explanations begin
SHOWN = 60  # characters of a value


def key_lines(
    values: Mapping[str, Any],
    explanations: Mapping[str, str],
    choices: Mapping[str, Sequence[str]],
    reads: Sequence[str],
    width: int,
) -> Iterator[str]:
    """Lines on the keys `reads` of a configuration, a heading for each group; `choices`: the files of a group."""
    for key in sorted(reads, key=lambda key: isinstance(found(values, key), Mapping)):  # single keys first
        value = found(values, key)
        if isinstance(value, Mapping):
            yield ""
            several = choices.get(key, ())
            chosen = f" {key}=" + " | ".join(several) if len(several) > 1 else ""
            yield from wrapped(f"{key}: {explanations.get(key, '')}{chosen}", width)
        for place, leaf in leaves(key, value):
            yield from key_line(place, leaf, explanations.get(place, ""), width)


def wrapped(text: str, width: int) -> list[str]:
    """A paragraph as lines."""
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def document(text: str, width: int) -> Iterator[str]:
    """A module's docstring as lines: paragraphs are wrapped anew, what is indented keeps its lines."""
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.splitlines()
        if not any(line.startswith(" ") for line in lines):
            lines = [" ".join(lines)]
        for line in lines:
            indent = " " * (len(line) - len(line.lstrip()))
            yield from textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
        yield ""


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below a key that is no group."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from leaves(f"{key}.{name}", item)
    else:
        yield key, value


def key_line(key: str, value: Any, text: str, width: int) -> Iterator[str]:
    """A key with its value, and its explanation beside it, or below it where that has no room."""
    spelled = value if isinstance(value, str) and "\n" not in value else json.dumps(value)
    short = spelled if len(spelled) <= SHOWN else f"{spelled[: SHOWN - 3]}..."
    begin = f"  {key}={short}"
    lines = textwrap.wrap(text, max(20, width - COLUMN), break_on_hyphens=False)
    if len(begin) < COLUMN and lines:
        yield f"{begin:<{COLUMN}}{lines.pop(0)}"
    else:
        yield begin
    yield from (f"{'':<{COLUMN}}{line}" for line in lines)
