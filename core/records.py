"""The conversation: the one record that every stage reads, and the label order that every logit follows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

LABELS = ("a", "b", "tie")
Order = Literal["ab", "ba"]
ORDERS: tuple[Order, ...] = ("ab", "ba")
TEST = -1  # the fold of the locked test split: no model of any stage learns from it
BOTH_BAD = {"tie": "both bad"}  # the tag of a tie between two bad responses, where the data tell such ties apart
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt of one or more turns, two responses to it, and what people voted.

    `prompt`, `response_a` and `response_b` hold one text a turn. `votes` are three counts in the order of `LABELS`:
    one-hot for a single vote, more where several people voted, None where nobody did. `group` is a hash of the first
    prompt, the same for near-duplicates: conversations of one group never sit in different folds. `fold` is 0 or
    above, or `TEST`. `score_a` and `score_b` are what somebody gave each response alone, on the scale of the data.
    `tags` say what else the data tell, such as {"language": "English"} and `BOTH_BAD`: a name and a value each.
    """

    id: str
    prompt: list[str]
    response_a: list[str]
    response_b: list[str]
    model_a: str | None = None
    model_b: str | None = None
    votes: list[float] | None = None
    group: str = ""
    fold: int = 0
    source: str = ""
    score_a: float | None = None
    score_b: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def swap(self) -> "Conversation":
        """The same conversation with the two sides exchanged: responses, models, votes and scores."""
        return replace(
            self,
            response_a=self.response_b,
            response_b=self.response_a,
            model_a=self.model_b,
            model_b=self.model_a,
            votes=None if self.votes is None else list(swap_labels(self.votes)),
            score_a=self.score_b,
            score_b=self.score_a,
        )

    def fingerprint(self) -> int:
        """64 bits of a hash of the texts alone, equal for both orders: tells whether a model has seen this pair."""
        sides = sorted(json.dumps(side) for side in (self.response_a, self.response_b))
        return int.from_bytes(hashlib.sha256("\n".join([json.dumps(self.prompt), *sides]).encode()).digest()[:8])

    def sided_fingerprint(self) -> int:
        """The fingerprint, its lowest bit flipped where the responses stand the other way round.

        It tells whether what is stored of a conversation is said of this a and this b.
        """
        return self.fingerprint() ^ (json.dumps(self.response_a) > json.dumps(self.response_b))


def swap_labels(values: Sequence[T]) -> tuple[T, T, T]:
    """Exchange a and b in three values laid out as `LABELS` (votes, logits, probabilities)."""
    a, b, tie = values
    return b, a, tie
