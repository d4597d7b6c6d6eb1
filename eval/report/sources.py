"""Figures on a page that say where they come from, so that a test can follow each of them back to its file.

A place is a file and a JSON pointer in it (RFC 6901), as in `metrics.json#/judges/student/log_loss`; in a table, the
column and the row. What is shown is read from there, so no page can show a number that its files do not hold.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from eval.evaluation import METRICS

ABSENT = "–"
DISPLAY: dict[str, Callable[[Any], str]] = {
    "nats": "{:.4f}".format,
    "signed": "{:+z.4f}".format,
    "share": "{:.1%}".format,
    "points": lambda share: f"{100 * share:+z.1f}",
    "count": "{:,}".format,
    "tokens": "{:,.0f}".format,
    "hours": lambda hours: f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}",
    "number": "{:g}".format,
    "loss": "{:.2f}".format,
    "ratio": "{:.3f}".format,
    "rating": "{:,.0f}".format,
    "p": "{:#.2g}".format,
    "text": str,
}


Place = str | int | tuple["Place", ...]


class Sources:
    """The values of a page's files, by name; tables as {column: list}. A place may be nested tuples."""

    def __init__(self, files: Mapping[str, Any]):
        self.files = files

    def show(self, form: str, *place: Place, file: str = METRICS) -> Markup:
        """The value at `place` as an element that names it; a dash where there is none."""
        return self._element("data", "{}", [(form, *place)], file)

    def between(self, form: str, *place: Place, file: str = METRICS) -> Markup:
        """The interval [low, high] at `place`; nothing where there is none."""
        if self._value(place, file) is None:
            return Markup()
        return self.show(form, *place, 0, file=file) + Markup(" to&nbsp;") + self.show(form, *place, 1, file=file)

    def tip(self, text: str, *shown: tuple[str, *tuple[Place, ...]], file: str = METRICS) -> Markup:
        """What a mark of a chart says when it is pointed at: `text`, its braces filled by (form, *place)."""
        return self._element("title", text, shown, file)

    def _element(self, tag: str, text: str, shown: Sequence[tuple[str, *tuple[Place, ...]]], file: str) -> Markup:
        values = [(form, self._value(place, file)) for form, *place in shown]
        filled = text.format(*(ABSENT if value is None else DISPLAY[form](value) for form, value in values))
        sources = " ".join(_pointer(file, place) for _, *place in shown)
        forms = " ".join(form for form, *_ in shown)
        element = Markup('<{tag} data-source="{sources}" data-format="{forms}">{filled}</{tag}>')
        return element.format(tag=tag, sources=sources, forms=forms, filled=filled)

    def _value(self, place: Iterable[Place], file: str) -> Any:
        value = self.files[file]
        for key in _keys(place):
            value = value[key]
        return value


def _keys(place: Iterable[Place]) -> Iterator[str | int]:
    for part in place:
        if isinstance(part, tuple):
            yield from _keys(part)
        else:
            yield part


def _pointer(file: str, place: Iterable[Place]) -> str:
    """`file#/a/b`, percent-encoded, so that a list of them can be parted at its spaces."""
    keys = "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in _keys(place))
    return quote(f"{file}#{keys}", safe="/#=,:~")
