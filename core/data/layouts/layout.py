"""What a layout is: the columns by which it is known, and how a stream of its rows becomes conversations."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from core.data.files.rows import SURROGATES, Row, shown
from core.errors import UserError
from core.records import Conversation

Cells = Mapping[str, Any]
Names = tuple[str, ...]  # what one column is called; the first that a file has is read. "*_score": one that ends so
MODELS = ("model_a", "model_b")
IDS = ("id", "pair_id", "question_id", "conversation_id", "prompt_id", "idx")
IDENTIFYING = ("prompt", "response_a", "response_b", *MODELS, "score_a", "score_b")
TAGS = ("language", "subset", "category", "domain", "source", "dataset", "task", "is_code")


class BadRow(UserError):
    """Why a row is rejected: the kind of problem, a colon, and the offending value."""


class Found(NamedTuple):
    """A conversation, the row that gave it, and the cells that tell it from a duplicate."""

    line: int
    conversation: Conversation
    cells: Cells


class Repeated(NamedTuple):
    """A row that says again what an earlier one has said, in a layout that joins rows."""

    line: int


class Rejected(NamedTuple):
    """A row that gave none: its id where it has one, and why."""

    line: int
    id: str | None
    reason: str


@dataclass(frozen=True)
class Reading:
    """How to read one source: its name and columns, and the settings that decide what a row means.

    `lists` are the text columns that hold JSON lists; of the others each text is one turn. `grades` and
    `pairs_per_prompt`: see `DataConfig`. Without `with_votes` nobody is asked how they voted.
    """

    source: str
    columns: frozenset[str]
    lists: frozenset[str] = frozenset()
    grades: Sequence[float] = ()
    pairs_per_prompt: int = 1
    with_votes: bool = True

    def named(self, names: Names) -> str | None:
        """Which of the source's columns goes by one of `names`."""
        return named(names, self.columns)

    def needed(self, names: Names) -> str:
        """The same of a column that the layout needs: without it the source would not have been recognised."""
        name = self.named(names)
        if name is None:
            raise KeyError(names)
        return name

    def cell(self, cells: Cells, names: Names) -> Any:
        """What stands in the column that goes by one of `names`; None where there is none."""
        name = self.named(names)
        return None if name is None else cells.get(name)


def named(names: Names, columns: Collection[str]) -> str | None:
    """Which of `columns` goes by one of `names`; a pattern names one only where no other column fits it."""
    for name in names:
        found = [c for c in columns if c.endswith(name[1:])] if name.startswith("*") else [name] * (name in columns)
        if len(found) == 1:
            return found[0]
    return None


Outcome = Found | Repeated | Rejected
Read = Callable[[Iterable[Row], Reading], Iterator[Outcome]]


@dataclass(frozen=True)
class Layout:
    """A way in which preference data are laid out in columns.

    `texts` are the columns that it needs, `votes` those that tell the votes, each group of them enough by itself; none,
    where the texts' own columns tell them. `reads` are read where they are there; `unneeded` are known, and nothing is
    lost without them. `unlabelled`: it may lack votes. `one_id`: an id names one row. `sided`: a and b are the file's;
    else a is the better one, and sides are exchanged at random, by id, before anybody learns from them. `settings` are
    the keys of `Reading` that change what it gives.
    """

    name: str
    looks: str
    source: str
    texts: tuple[Names, ...]
    read: Read
    votes: tuple[Names, ...] = ()
    reads: tuple[Names, ...] = ()
    unneeded: Names = ()
    one_id: bool = False
    sided: bool = True
    unlabelled: bool = False
    settings: Names = ()

    def votes_in(self, columns: Iterable[str]) -> Names | None:
        """The columns of `columns` that tell the votes; None where there are none."""
        return next((group for group in self.votes if {*group} <= {*columns}), None)

    def known(self) -> set[str]:
        """All columns that it has something to say of."""
        groups = (*self.texts, *self.votes, *self.reads)
        return {name for group in groups for name in group} | {*IDS, *TAGS, *self.unneeded}


def by_row(conversations: Callable[[Cells, Reading], Sequence[Conversation]], one_id: bool = False) -> Read:
    """Reads each row by itself: `conversations` are those of its cells, without ids.

    A row's id is that of its own column, else a hash of its texts; several conversations of a row are numbered. An id
    that comes again gets a number, too, unless it is of the column `id` and that has to name one row (`one_id`).
    """

    def read(rows: Iterable[Row], reading: Reading) -> Iterator[Outcome]:
        column, taken = reading.named(IDS), Counter[str]()
        for row in rows:
            try:
                if row.problem is not None:
                    raise BadRow(row.problem)
                own = None if column is None else identify(row.cells, column)
                found = conversations(row.cells, reading)
            except BadRow as problem:
                yield Rejected(row.line, shown_id(row, column), str(problem))
                continue
            tags = tags_of(row.cells, reading)
            for number, conversation in enumerate(found, 1):
                identity = text_id(conversation) if own is None else own if len(found) == 1 else f"{own}/{number}"
                taken[identity] += 1
                if taken[identity] > 1 and not (one_id and column == IDS[0]):
                    identity = f"{identity}-{taken[identity]}"
                tagged = {**tags, **conversation.tags}
                yield Found(row.line, replace(conversation, id=identity, source=reading.source, tags=tagged), row.cells)

    return read


def identify(cells: Cells, column: str = "id") -> str:
    """A row's id as every stage writes it. Raises `BadRow` where it has none, or one that is no text in UTF-8.

    A whole number that came as a float, as pandas keeps a column of them with a gap, is that number: 1000.0 is 1000.
    Text stays letter for letter, 007 and 1000.0 too: a submission has to repeat it so.
    """
    value = cells.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()
    if missing:
        raise BadRow(f"{column} is missing: {shown(value)}")
    if SURROGATES.search(str(value)):
        raise BadRow(f"{column} is not UTF-8: {shown(value)}")
    return str(value)


def shown_id(row: Row, column: str | None) -> str | None:
    """The id of a row that may be damaged, as lists of rejected rows name it."""
    value = None if column is None else row.cells.get(column)
    return None if value is None else clean(str(value))


def text_id(conversation: Conversation) -> str:
    """16 hexadecimal digits of a hash of texts, models and scores: an id that does not depend on the order of rows."""
    of = [getattr(conversation, name) for name in IDENTIFYING]
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]


def tags_of(cells: Cells, reading: Reading) -> dict[str, str]:
    """The tags that the columns in `TAGS` hold: one value each, of a list its values joined."""
    found = {}
    for name in TAGS:
        if name in reading.columns and (cell := cells.get(name)) is not None:
            if isinstance(cell, str) and cell.startswith("["):  # a list in a format that has none
                with suppress(ValueError, RecursionError):
                    cell = json.loads(cell)
            parts = cell if isinstance(cell, list) else [cell]
            if (text := clean(", ".join(map(str, parts))).strip()) and not isinstance(cell, Mapping):
                found[name] = text.capitalize() if text.lower() in ("true", "false") else text
    return found


def name_in(cells: Cells, name: str | None) -> str | None:
    """A model's name; None where there is none."""
    value = None if name is None else cells.get(name)
    return None if value is None or value == "" else clean(str(value))


def clean(text: str) -> str:
    """Lone surrogates, which cannot be encoded, become U+FFFD."""
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


def number(cell: Any) -> float:
    """A cell as a number; NaN where it is none."""
    try:
        return math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def score_in(cell: Any) -> float | None:
    """The score of a response; None where the cell holds no finite number."""
    return value if math.isfinite(value := number(cell)) else None
