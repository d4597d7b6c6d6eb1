"""Finds the layout of a source by its columns, or takes `data.layout`, and lists what is wrong with the columns."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from core.data.config import DataConfig
from core.data.files.rows import Row, Source
from core.data.layouts.layout import IDS, MODELS, TAGS, Cells, Layout, Names, Reading, named
from core.data.layouts.lmsys import LMSYS
from core.data.layouts.table import LAYOUTS
from core.data.layouts.texts import holds_list, is_printed_list
from core.data.layouts.votes import COUNTS, FOREIGN_VOTE, FOREIGN_VOTES, WINNERS

PEEKED = 100  # rows that tell whether a column's texts are JSON lists
NEAREST = 2  # layouts that a message names
EDITS = ((8, 2), (5, 1))  # from so many letters on, how many edits make a misspelling; any other case is one


@dataclass(frozen=True)
class Recognised:
    """A source with its layout, how that is to read it, and the columns that are not needed."""

    source: Source
    layout: Layout
    reading: Reading
    unneeded: list[str]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def identity(self) -> dict[str, Any]:
        """Changes when the conversations may: the content, the layout, and the settings that it reads.

        Data of versions that knew one layout say nothing of it.
        """
        layout = {} if self.layout is LMSYS else {"layout": self.layout.name}
        return {**self.source.identity, **layout, **{key: getattr(self.reading, key) for key in self.layout.settings}}

    def rows(self, limit: int | None) -> Iterator[Row]:
        """The first `limit` rows."""
        return islice(self.source.rows(), limit)


def recognise(source: Source, data: DataConfig, with_votes: bool, problems: list[str]) -> Recognised | None:
    """The layout of a source; None, and lines in `problems`, where there is none, or something wrong with the columns.

    A column's texts are JSON lists where most of the first `PEEKED` are.
    """
    where, columns = source.where, source.columns
    if len({*columns}) < len(columns):
        problems.append(f"{where}: column names occur twice: {columns}; rename one of each")
        return None
    layout = _by_name(data.layout, source, problems) if data.layout else _by_columns(source, with_votes, problems)
    if layout is None:
        return None
    rows = peeked(source)
    lists = lists_in(source, (*layout.texts, *layout.reads))
    votes = layout.votes_in(columns)
    unknown = [name for name in columns if name not in layout.known() and name not in _read(layout, columns)]
    printed = [name for name in columns if name not in unknown and _most(is_printed_list, name, rows)]
    wrong = [
        f"column {name!r} holds lists as Python prints them, which are no JSON: write the file as parquet or JSON Lines"
        for name in printed
    ]
    wrong += [] if data.layout else _misspelt(layout, columns, unknown, with_votes and votes is None)
    if with_votes and votes is None and layout.votes:
        wrong += _half_votes(layout, columns)
        wrong += [] if data.layout or wrong else _foreign_votes(layout, unknown, rows)
    problems += [f"{where}: {problem}" for problem in wrong]
    reading = Reading(source.name, frozenset(columns), lists, data.grades, data.pairs_per_prompt, with_votes)
    needed = {*_read(layout, columns), *(votes or ())}
    return Recognised(source, layout, reading, [name for name in columns if name not in needed])


def peeked(source: Source) -> list[Cells]:
    """The cells of the first rows."""
    return [row.cells for row in islice(source.rows(), PEEKED) if row.problem is None]


def lists_in(source: Source, texts: Sequence[Names]) -> frozenset[str]:
    """The columns among `texts` that hold JSON lists."""
    rows, found = peeked(source), [named(names, source.columns) for names in texts]
    return frozenset(name for name in found if name and _most(holds_list, name, rows))


def _by_name(name: str, source: Source, problems: list[str]) -> Layout | None:
    layout = LAYOUTS[name]
    if missing := _missing(layout, source.columns):
        problems.append(
            f"{source.where}: data.layout={name} needs the columns {_told(missing)}, found {source.columns}"
        )
        return None
    return layout


def _by_columns(source: Source, with_votes: bool, problems: list[str]) -> Layout | None:
    """The one layout that most of the columns speak for."""
    columns = source.columns
    points: dict[str, int] = {}
    for name, layout in LAYOUTS.items():
        voted = layout.votes_in(columns) is not None
        if not _missing(layout, columns) and (voted or layout.unlabelled or not layout.votes):
            points[name] = len(layout.texts) + voted
    best = [name for name in points if points[name] == max(points.values())]
    if len(best) == 1:
        return LAYOUTS[best[0]]
    if best:
        problems.append(f"{source.where}: may be of the layouts {', '.join(best)}: say which, data.layout={best[0]}")
        return None
    nearest = sorted(LAYOUTS.values(), key=lambda layout: len(_missing(layout, columns)) / len(layout.texts))[:NEAREST]
    lacks = "; ".join(f"{layout.name} lacks {_told(_missing(layout, columns), columns)}" for layout in nearest)
    problems.append(
        f"{source.where}: no layout has these columns: {columns}. {lacks}. Rename columns, or see docs/data.md"
    )
    return None


def _missing(layout: Layout, columns: Collection[str]) -> list[Names]:
    return [names for names in layout.texts if named(names, columns) is None]


def _told(missing: Sequence[Names], columns: Collection[str] = ()) -> str:
    """The missing columns, each with the one that may be meant."""
    told = []
    for names in missing:
        meant = [column for column in columns for name in names if is_misspelt(column, name)]
        told.append(f"{' or '.join(names)!r}" + (f" (is it {meant[0]!r}?)" if meant else ""))
    return ", ".join(told)


def _read(layout: Layout, columns: Collection[str]) -> set[str]:
    """The columns that the layout reads, votes apart."""
    found = {named(names, columns) for names in (*layout.texts, *layout.reads, IDS)}
    return {name for name in found if name} | ({*TAGS} & {*columns})


def _misspelt(layout: Layout, columns: Collection[str], unknown: list[str], lacks_votes: bool) -> list[str]:
    """Columns that are likely misspellings of what the layout reads and the source lacks."""
    lacking = [names for names in layout.reads if named(names, columns) is None]
    lacking += [IDS] if named(IDS, columns) is None else []
    lacking += [(name,) for name in TAGS if name not in columns]
    lacking += [(name,) for group in layout.votes for name in group] if lacks_votes else []
    return [
        f"column {column!r} seems to be {name!r} misspelt: rename it, or name data.layout={layout.name} to leave it out"
        for column in unknown
        for names in lacking
        for name in names
        if is_misspelt(column, name)
    ]


def _half_votes(layout: Layout, columns: Collection[str]) -> list[str]:
    """Groups of vote columns of which some are there and others not."""
    found = []
    for group in layout.votes:
        missing = [name for name in group if name not in columns]
        if len(missing) < len(group):
            found.append(f"missing columns {missing}; add them, the votes need all of {group}")
    return found


def _foreign_votes(layout: Layout, unknown: Collection[str], rows: Sequence[Cells]) -> list[str]:
    """Columns that seem to hold votes where no layout reads any."""
    votes = [name for name in unknown if name.lower() in FOREIGN_VOTES or any(_is_vote(c.get(name), c) for c in rows)]
    if not votes:
        return []
    return [
        f"columns {votes} seem to hold the votes, and no layout of docs/data.md reads them from there: write them as "
        f"{WINNERS}, one of them 1 and the others 0, or as {COUNTS}; if they are none, say data.layout={layout.name}"
    ]


def _is_vote(cell: Any, cells: Cells) -> bool:
    """Whether a cell names a winner, by its side or as one of the two models."""
    return str(cell) in FOREIGN_VOTE or bool(cell and cell in [cells.get(name) for name in MODELS])


def _most(is_so: Callable[[str], bool], name: str, rows: Sequence[Cells]) -> bool:
    """Whether most of the texts in a column are so."""
    texts = [cell for cells in rows if isinstance(cell := cells.get(name), str) and cell]
    return 2 * sum(map(is_so, texts)) > len(texts)


def is_misspelt(found: str, name: str) -> bool:
    """Whether `found` is most likely meant to be `name`: within two edits, fewer where the name is short."""
    if found == name or name.startswith("*"):
        return False
    edits = next((most for length, most in EDITS if len(name) >= length), 0)
    return distance(found.lower(), name.lower()) <= edits


def distance(one: str, other: str) -> int:
    """Insertions, deletions and substitutions that make `other` of `one` (Levenshtein 1966)."""
    row: list[int] = [*range(len(other) + 1)]
    for i, letter in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, expected in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (letter != expected))
    return row[-1]
