"""Which conversations meet in which optimiser step, on which rank, and in which micro-batch.

A step holds whole conversations, both orders of each; a rank gets whole conversations; a micro-batch gets rows of
similar length. Conversations that share a response go to one step of a pointwise judge and to one micro-batch, as far
as these have room: there it is computed once, and does not meet the weights again and again within an epoch, to be
learned by heart (Ouyang et al. 2022, arXiv 2203.02155, section 3.5). All of it follows from (seed, epoch) alone, so a
resumed run, or one on more ranks, meets the same conversations in the same steps, each exactly once an epoch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from core.records import ORDERS

PIECES = 4  # of a step, at least: conversations that share no response with those of the others, if there are such
BatchRow = tuple[int, int]  # (index of the example, index into ORDERS)
PromptNumbers = tuple[int, int]  # what tells an example's prompts, in either order, from others
Numbers = Sequence[PromptNumbers] | Mapping[int, PromptNumbers]  # by the index of the example


def plan_epoch(
    lengths: Sequence[int], batch: int, pool_steps: int, seed: int, epoch: int, prompts: Numbers | None = None
) -> list[list[int]]:
    """The optimiser steps of one epoch, each a list of example indices; every example is in exactly one.

    Steps are cut from a random permutation, in pools of `pool_steps` steps that are sorted by length, so that little
    of a step is padding; the order of steps is random again. Examples that share `prompts` (None: none do) stay
    together in pieces of at most a `PIECES`th of a step, drawn at random. Of those that share any, no more than half a
    step stand in a row where their pool has others: a step of one prompt tells little.
    """
    rng = np.random.default_rng((seed, epoch))
    families = [[i] for i in range(len(lengths))] if prompts is None else _families(range(len(lengths)), prompts)
    pieces = [*enumerate(families)]  # of which family, and its examples
    if len(families) < len(lengths):
        most = max(1, batch // PIECES)
        mixed = [rng.permutation(family).tolist() if len(family) > 1 else family for family in families]
        pieces = [(at, family[k : k + most]) for at, family in enumerate(mixed) for k in range(0, len(family), most)]
        pieces = [pieces[place] for place in rng.permutation(len(pieces))]  # which decides among equal lengths
    longest = [max(lengths[i] for i in piece) for _, piece in pieces]
    order = rng.permutation(len(pieces))
    starts = np.cumsum([0, *(len(pieces[place][1]) for place in order)]) // (batch * pool_steps)
    rows: list[int] = []
    for _, pool in groupby(zip(order, starts, strict=False), key=itemgetter(1)):
        by_length = sorted((place for place, _ in pool), key=lambda place: (longest[place], place))
        rows += _apart([pieces[place] for place in by_length], batch // 2)
    steps = [rows[k : k + batch] for k in range(0, len(rows), batch)]
    return [steps[i] for i in rng.permutation(len(steps))]


def micro_batches(
    step: Sequence[int],
    lengths: Sequence[int],
    world: int,
    budget: int,
    prompts: Numbers | None = None,
) -> list[list[list[BatchRow]]]:
    """Deal a step's examples to ranks and cut each rank's into micro-batches of at most `budget` padded tokens.

    Returns [rank][micro-batch][row], both orders of a conversation side by side. All ranks get the same number of
    micro-batches, because a ZeRO engine communicates in each; some may be empty. A conversation that is longer than the
    budget is a micro-batch of its own. `prompts` (None: all differ) say which conversations share a prompt: they stay
    together, unless that would take more than the budget, or they are more than a rank's equal part, in pieces of which
    they are dealt. Each piece goes to the rank with the fewest so far, so none gets twice its part: of families of 3, 3
    and 3 two ranks get 6 and 3.
    """
    numbers = prompts or {i: (2 * i, 2 * i + 1) for i in step}
    ranks: list[list[list[int]]] = [[] for _ in range(world)]
    part = math.ceil(len(step) / world)
    for family in _families(sorted(step, key=lambda i: (-lengths[i], i)), numbers):
        for start in range(0, len(family), part):
            min(ranks, key=lambda dealt: sum(map(len, dealt))).append(family[start : start + part])
    cut = [_cut(families, lengths, numbers, budget) for families in ranks]
    most = max(map(len, cut))
    return [pieces + [[]] * (most - len(pieces)) for pieces in cut]


def _apart(pieces: Sequence[tuple[int, list[int]]], most: int) -> Iterator[int]:
    """The examples of `pieces`, (family, examples), in this order but that another family goes before, if there is one,
    where more than `most` of one would stand in a row."""
    left, last, row = [*pieces], -1, 0
    while left:
        fits = (at for at, (family, piece) in enumerate(left) if family != last or row + len(piece) <= most)
        family, piece = left.pop(next(fits, 0))
        last, row = family, len(piece) + (row if family == last else 0)
        yield from piece


def _families(examples: Sequence[int], numbers: Numbers) -> list[list[int]]:
    """`examples` by the prompts that they share, directly or through others; a family stands where its first stood."""
    first_with: dict[int, int] = {}  # prompt -> position of the first example that has it
    parents = list(range(len(examples)))

    def root(position: int) -> int:
        while parents[position] != position:
            position = parents[position]
        return position

    for position, i in enumerate(examples):
        for number in numbers[i]:
            older, newer = sorted((root(first_with.setdefault(number, position)), root(position)))
            parents[newer] = older
    families: dict[int, list[int]] = {}
    for position, i in enumerate(examples):
        families.setdefault(root(position), []).append(i)
    return [*families.values()]


def _cut(
    families: Sequence[Sequence[int]], lengths: Sequence[int], numbers: Numbers, budget: int
) -> list[list[BatchRow]]:
    parts: list[Sequence[int]] = []
    for family in families:
        whole = len({n for i in family for n in numbers[i]}) * lengths[family[0]] <= budget
        parts += [family] if whole else [[i] for i in family]
    pieces: list[list[BatchRow]] = []
    prompts: set[int] = set()
    for part in sorted(parts, key=lambda part: -lengths[part[0]]):  # the first one of a piece sets its padded width
        added = {n for i in part for n in numbers[i]}
        if not pieces or len(prompts | added) * lengths[pieces[-1][0][0]] > budget:
            pieces.append([])
            prompts = set()
        prompts |= added
        pieces[-1] += [(i, order) for i in part for order in range(len(ORDERS))]
    return pieces
