"""Which prompts quantisation and the measurement of activations see: few, of all lengths, and the same each time."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise

from distill.errors import UserError
from distill.prompts import Renderer
from distill.records import Conversation

POOL = 8  # conversations rendered for each one chosen: enough to know the lengths, however many there are


def calibration_prompts(
    conversations: Sequence[Conversation], renderer: Renderer, count: int, seed: int
) -> list[list[int]]:
    """The prompts of `count` conversations, shortest first, every other one with b shown first.

    Stratified by length: prompts sorted by their tokens are cut into `count` equal strata, and each gives one. Which
    one follows from a hash of (seed, id), so the order of `conversations` does not matter. A prompt is whole, neither
    padded nor joined to another: a judge reads its last token. Give training conversations alone. Raises `UserError`
    where there are fewer than `count`.
    """
    if len(conversations) < count:
        raise UserError(
            f"{len(conversations)} training conversations are fewer than export.calibration_rows={count}: "
            "lower it, or prepare more data"
        )

    def rank(row: str) -> bytes:
        return hashlib.sha256(f"{seed} {row}".encode()).digest()

    pool = sorted(conversations, key=lambda c: rank(c.id))[: POOL * count]
    shown = list(renderer.render(pool))
    pairs = sorted(zip(shown[::2], shown[1::2], strict=True), key=lambda pair: len(pair[0].ids))
    edges = [i * len(pairs) // count for i in range(count + 1)]
    strata = [pairs[start:end] for start, end in pairwise(edges)]
    chosen = [min(stratum, key=lambda pair: rank(pair[0].id)) for stratum in strata]
    return [pair[i % 2].ids for i, pair in enumerate(chosen)]
