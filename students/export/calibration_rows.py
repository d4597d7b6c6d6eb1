"""Which prompts quantisation, the measurement of activations and canaries see: few, of all lengths, always the same."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate, pairwise

from core.errors import UserError
from core.prompts import Rendered, Renderer
from core.records import Conversation

Pair = tuple[Rendered, Rendered]  # a conversation in both orders
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
    return [[*prompt.ids] for prompt in _of_all_lengths(_pool(conversations, renderer, count, seed), count, seed)]


def canary_prompts(
    conversations: Sequence[Conversation], renderer: Renderer, rows: int, tokens: int, seed: int
) -> list[tuple[Conversation, Rendered]]:
    """Up to `rows` conversations with a prompt each, chosen as above among those that are short enough.

    These are as many of the shortest as leave all that are chosen about `tokens` tokens together.
    """
    count = min(rows, len(conversations))
    pairs = _pool(conversations, renderer, count, seed)
    means = [total / n for n, total in enumerate(accumulate(len(pair[0].ids) for pair in pairs), 1)]
    short = max(count, sum(mean * count <= tokens for mean in means))
    by_id = {c.id: c for c in conversations}
    return [(by_id[prompt.id], prompt) for prompt in _of_all_lengths(pairs[:short], count, seed)]


def _rank(seed: int, row: str) -> bytes:
    return hashlib.sha256(f"{seed} {row}".encode()).digest()


def _pool(conversations: Sequence[Conversation], renderer: Renderer, count: int, seed: int) -> list[Pair]:
    """Some of the conversations in both orders, enough to choose `count` from; the shortest first."""
    drawn = sorted(conversations, key=lambda c: _rank(seed, c.id))[: POOL * count]
    shown = list(renderer.render(drawn))
    return sorted(zip(shown[::2], shown[1::2], strict=True), key=lambda pair: len(pair[0].ids))


def _of_all_lengths(pairs: Sequence[Pair], count: int, seed: int) -> list[Rendered]:
    """One prompt of each of `count` strata of `pairs`, orders in turn."""
    edges = [i * len(pairs) // count for i in range(count + 1)]
    strata = [pairs[start:end] for start, end in pairwise(edges)]
    chosen = [min(stratum, key=lambda pair: _rank(seed, pair[0].id)) for stratum in strata]
    return [pair[i % 2] for i, pair in enumerate(chosen)]
