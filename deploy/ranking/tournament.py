"""Ranking the responses to one prompt by rounds of comparisons, each chosen from what the rounds before have told."""

from dataclasses import replace

import numpy as np

from core.data.layouts.texts import Dialogue
from core.records import Conversation
from deploy.ranking.pairing import comparisons, next_round, ring
from deploy.ranking.strengths import NONE, Opinions, Strengths, fit


class Tournament:
    """The comparisons of `count` responses. Ask for `pairs`, `tell` what the judge thinks of them, until none is left.

    The same opinions lead to the same pairs, so that a run that was stopped finds its way again.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._opinions = NONE
        self._left = comparisons(count)

    def pairs(self) -> np.ndarray:
        """int [n, 2]: the responses to compare next, by their places; empty where enough is known."""
        if not self._left:
            return NONE.pairs
        asked = self._opinions.pairs
        return next_round(self.strengths(), asked, self._left) if len(asked) else ring(self.count)

    def tell(self, pairs: np.ndarray, shares: np.ndarray) -> None:
        """Take in how often the first response of each pair is preferred, a tie counted half."""
        assert len(pairs) == len(shares) <= self._left
        self._opinions = self._opinions.and_then(Opinions(pairs, shares))
        self._left -= len(pairs)

    def strengths(self) -> Strengths:
        """What the opinions so far say."""
        return fit(self.count, self._opinions)


def single(chat: Dialogue, id: str) -> Conversation:
    """The conversation of one response to be ranked or rewarded, which is a, and b."""
    return Conversation(id, chat.prompt, chat.response, chat.response)


def versus(one: Conversation, other: Conversation, id: str) -> Conversation:
    """The conversation whose response b is response a of the `other` one."""
    return replace(one, id=id, response_b=other.response_a, model_b=other.model_a)
