"""What a judge is trained on, and which rows meet in which optimiser step on which rank.

A step holds whole conversations, both orders of each; a rank gets whole conversations; a micro-batch gets rows of
similar length. All of it follows from (seed, epoch) alone, so a resumed run, or one on more ranks, meets the same
conversations in the same steps, each exactly once an epoch.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distill.prompts import Rendered
from distill.records import LABELS, ORDERS, Conversation, swap_labels

Row = tuple[int, int]  # (index of the example, index into ORDERS)


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation ready for training: token ids of both orders, and targets in its own a/b order."""

    id: str
    ids: tuple[list[int], list[int]]
    votes: tuple[float, float, float] | None
    teacher: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A forward pass: `input_ids` [rows, tokens] padded at the right, `lengths` [rows], targets [rows, 3] as shown."""

    input_ids: torch.Tensor
    lengths: torch.Tensor
    votes: torch.Tensor
    vote_weights: torch.Tensor
    teacher: torch.Tensor
    teacher_weights: torch.Tensor


def make_examples(
    conversations: Sequence[Conversation], rendered: Iterable[Rendered], targets: Mapping[str, Sequence[float]] | None
) -> list[Example]:
    """Join conversations, their prompts and the teacher's swap-averaged logits by id.

    Raises `ValueError` naming conversations for which `targets` has no logits, or that have no target at all.
    """
    prompts = {(r.id, r.order): r.ids for r in rendered}
    missing = [c.id for c in conversations if targets is not None and c.id not in targets]
    if missing:
        raise ValueError(
            f"the teacher's logits lack {len(missing)} of {len(conversations)} conversations, such as {missing[:3]}: "
            "score them first (make teacher-logits)"
        )
    without = [c.id for c in conversations if targets is None and c.votes is None]
    if without:
        raise ValueError(
            f"{len(without)} conversations have no votes, such as {without[:3]}: "
            "train them with loss.soft_weight > 0 and a teacher"
        )
    return [
        Example(
            id=c.id,
            ids=(prompts[c.id, ORDERS[0]], prompts[c.id, ORDERS[1]]),
            votes=None if c.votes is None else _distribution(c.votes),
            teacher=None if targets is None else _triple(targets[c.id]),
        )
        for c in conversations
    ]


def split(
    conversations: Sequence[Conversation], fold: int, validation_share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, validation) conversations: the held-out `fold` is in neither, a prompt group is never in both.

    The validation part chooses the checkpoint, so that the held-out fold stays unseen by any decision; it has votes.
    """
    rest = [c for c in conversations if c.fold != fold]
    if len(rest) == len(conversations):
        raise ValueError(
            f"fold={fold}: no conversation is in that fold; folds here: {sorted({c.fold for c in conversations})}"
        )
    groups = sorted({c.group for c in rest}, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
    chosen, wanted = set(), validation_share * len(rest)
    sizes: dict[str, int] = {}
    for c in rest:
        sizes[c.group] = sizes.get(c.group, 0) + 1
    taken = 0
    for group in groups:
        if taken + sizes[group] / 2 < wanted:
            chosen.add(group)
            taken += sizes[group]
    training = [c for c in rest if c.group not in chosen]
    validation = [c for c in rest if c.group in chosen and c.votes]
    if not validation:
        raise ValueError(
            f"the validation part of fold={fold} has no votes: raise student.validation_share or check the data"
        )
    return training, validation


def plan_epoch(lengths: Sequence[int], batch: int, pool_steps: int, seed: int, epoch: int) -> list[list[int]]:
    """The optimiser steps of one epoch, each a list of example indices; every example is in exactly one.

    Steps are cut from a random permutation, in pools of `pool_steps` steps that are sorted by length, so that little
    of a step is padding; the order of steps is random again.
    """
    rng = np.random.default_rng((seed, epoch))
    order, pool = rng.permutation(len(lengths)), batch * pool_steps
    steps = []
    for start in range(0, len(order), pool):
        by_length = sorted(order[start : start + pool].tolist(), key=lambda i: (lengths[i], i))
        steps += [by_length[k : k + batch] for k in range(0, len(by_length), batch)]
    return [steps[i] for i in rng.permutation(len(steps))]


def micro_batches(step: Sequence[int], lengths: Sequence[int], world: int, budget: int) -> list[list[list[Row]]]:
    """Deal a step's examples to ranks and cut each rank's rows into micro-batches of at most `budget` padded tokens.

    Returns [rank][micro-batch][row]. All ranks get the same number of micro-batches, because a ZeRO engine
    communicates in each; some may be empty. A row longer than the budget is a micro-batch of its own.
    """
    by_length = sorted(step, key=lambda i: (-lengths[i], i))
    ranks = [
        _cut([(i, order) for i in by_length[rank::world] for order in range(len(ORDERS))], lengths, budget)
        for rank in range(world)
    ]
    most = max(map(len, ranks))
    return [pieces + [[]] * (most - len(pieces)) for pieces in ranks]


def collate(rows: Sequence[Row], examples: Sequence[Example], device: torch.device) -> Batch:
    """Pad rows at the right and permute their targets to the order shown. No rows: one dummy row of weight 0."""
    shown = rows or [(0, 0)]
    ids = [examples[i].ids[order] for i, order in shown]
    lengths = torch.tensor([len(x) for x in ids])
    # Pads come after the pooled token: their id is of no account.
    input_ids = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    for row, x in zip(input_ids, ids, strict=True):
        row[: len(x)] = torch.tensor(x)
    votes, vote_weights = _targets([examples[i].votes for i, _ in shown], shown, bool(rows))
    teacher, teacher_weights = _targets([examples[i].teacher for i, _ in shown], shown, bool(rows))
    return Batch(*(t.to(device) for t in (input_ids, lengths, votes, vote_weights, teacher, teacher_weights)))


def _cut(rows: list[Row], lengths: Sequence[int], budget: int) -> list[list[Row]]:
    pieces: list[list[Row]] = []
    for row in rows:  # longest first, so the first row of a piece sets its padded width
        if pieces and (len(pieces[-1]) + 1) * lengths[pieces[-1][0][0]] <= budget:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces


def _targets(
    values: Sequence[tuple[float, float, float] | None], rows: Sequence[Row], real: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    shown = [
        (0.0,) * len(LABELS) if v is None else v if order == 0 else swap_labels(v)
        for v, (_, order) in zip(values, rows, strict=True)
    ]
    weights = [float(real and v is not None) for v in values]
    return torch.tensor(shown, dtype=torch.float32), torch.tensor(weights, dtype=torch.float32)


def _distribution(votes: Sequence[float]) -> tuple[float, float, float]:
    total = sum(votes)
    return _triple([v / total for v in votes])


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    a, b, tie = map(float, values)
    return a, b, tie
