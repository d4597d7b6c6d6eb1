"""Pairs of a prompt's scored responses: seeded by the texts, and each response about equally often."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from core.data.layouts.votes import by_score
from core.records import Conversation


@dataclass(frozen=True)
class Scored:
    """A response and what it scored."""

    turns: tuple[str, ...]
    model: str | None
    score: float


def drawn(prompt: list[str], responses: Sequence[Scored], count: int, with_votes: bool) -> Iterator[Conversation]:
    """`count` pairs of the responses to a prompt, all where there are fewer; the higher score has the vote.

    Neither the order of the responses nor the number of other prompts matters, and a side says nothing of the score:
    the responses are ordered by a hash. Responses that say the same are no pair.
    """
    ordered = sorted(responses, key=lambda response: _hash(prompt, response))
    pairs = ((ordered[first], ordered[second]) for first, second in matches(len(ordered)))
    for a, b in islice((pair for pair in pairs if pair[0].turns != pair[1].turns), count):
        yield Conversation(
            *("", prompt, [*a.turns], [*b.turns], a.model, b.model),
            votes=by_score(a.score, b.score) if with_votes else None,
            score_a=a.score,
            score_b=b.score,
        )


def matches(count: int) -> Iterator[tuple[int, int]]:
    """All pairs of `count` players, round by round of a tournament: in a round each plays once, or has a bye.

    The circle method (Lucas 1883): one stays, the others turn. Who is first alternates, so that no one always is.
    """
    players: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    for turn in range(len(players) - 1):
        half = len(players) // 2
        for number, (one, other) in enumerate(zip(players[:half], reversed(players[half:]), strict=True)):
            if one is not None and other is not None:
                yield (one, other) if (turn + number) % 2 else (other, one)
        players[1:] = [players[-1], *players[1:-1]]


def _hash(prompt: list[str], response: Scored) -> bytes:
    return hashlib.sha256(json.dumps([prompt, response.turns, response.model, response.score]).encode()).digest()
