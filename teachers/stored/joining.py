"""By what the rows of a file are joined to conversations: an id, or where the file has none a hash of the texts."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from core.data.files.rows import Row, Source
from core.data.layouts.layout import IDS, BadRow, identify, named
from core.data.layouts.recognising import PEEKED
from core.data.layouts.texts import holds_list, turns
from core.errors import UserError
from core.records import Conversation

NAMED = 3  # how many offending rows a message names
PAIR = ("prompt", "response_a", "response_b")


@dataclass(frozen=True)
class Join:
    """How the rows of a file are known: by column `id`, or else by columns `texts`, of which `lists` hold JSON lists.

    Texts beside an id tell which response the file calls a.
    """

    where: str
    id: str | None
    texts: Sequence[str]
    lists: Collection[str]

    @classmethod
    def of_pairs(cls, source: Source) -> "Join":
        """For rows of two responses. Raises `UserError` where they have neither ids nor texts."""
        id_column = named(IDS, source.columns)
        if id_column and not {*PAIR} <= {*source.columns}:
            return cls(source.where, id_column, (), ())
        return replace(cls.by_texts(source, PAIR), id=id_column)

    @classmethod
    def by_texts(cls, source: Source, texts: Sequence[str]) -> "Join":
        """For rows of these texts."""
        if lacking := [name for name in texts if name not in source.columns]:
            raise UserError(
                f"{source.where} has neither id nor {lacking[0]}, only {source.columns}: add one to join by"
            )
        cells = [row.cells for row in islice(source.rows(), PEEKED)]
        lists = {n for n in texts if any(isinstance(text := c.get(n), str) and holds_list(text) for c in cells)}
        return cls(source.where, None, texts, lists)

    def key(self, row: Row) -> str:
        """What a row is known by."""
        try:
            if self.id is not None:
                return identify(row.cells, self.id)
            return self.of_texts(*self._texts(row))
        except BadRow as problem:
            raise UserError(f"{self.where}, row {row.line}: {problem}; mend the row, or leave it out") from None

    def of(self, conversation: Conversation) -> str:
        """The same of a conversation."""
        if self.id is not None:
            return conversation.id
        return self.of_texts(conversation.prompt, conversation.response_a, conversation.response_b)

    def of_texts(self, prompt: list[str], *responses: list[str]) -> str:
        """The same of a prompt with one response or with two, whichever of them is a."""
        text = "\n".join([json.dumps(prompt), *sorted(map(json.dumps, responses))])
        return hashlib.sha256(text.encode()).hexdigest()

    def is_exchanged(self, row: Row, conversation: Conversation) -> bool:
        """Whether a row of two responses calls b what the conversation calls a, as far as the file has the texts.

        Raises `UserError` where they are two others.
        """
        try:
            _, *sides = self._texts(row) if self.texts else [[]]
        except BadRow:
            return False  # the id says whose they are
        own = [conversation.response_a, conversation.response_b]
        if sides and sides not in (own, own[::-1]):
            raise UserError(
                f"{self.where}, row {row.line}: {conversation.id} has other responses in the data, so that nobody can "
                f"tell which is a; mend it, or leave out {', '.join(PAIR[1:])}, if a and b are those of the data"
            )
        return sides != own and sides == own[::-1]

    def _texts(self, row: Row) -> list[list[str]]:
        return [turns(name, row.cells.get(name), name in self.lists) for name in self.texts]


def readable(source: Source) -> Iterator[Row]:
    """The rows of a file. Raises `UserError` for one that cannot be read."""
    for row in source.rows():
        if row.problem is not None:
            raise UserError(f"{source.where}, row {row.line}: {row.problem}; mend the row, or leave it out")
        yield row


def check_covered(wanted: Sequence[str], found: Collection[str], where: str, known: Iterable[str]) -> None:
    """Raise `UserError` unless all `wanted` conversations are among the `found`; `known`: what the file has instead."""
    if lacking := [name for name in wanted if name not in found]:
        there = [*islice(known, NAMED)]
        raise UserError(
            f"{where} has no opinion of {len(lacking):,} of {len(wanted):,} conversations, such as {lacking[:NAMED]} "
            f"(it has {there}): add them, or prepare data without them"
        )
