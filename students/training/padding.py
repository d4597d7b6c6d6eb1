"""How the prompts of a forward pass lie beside each other: (ids, positions, where each prompt ends in the flat ids)."""

from collections.abc import Sequence

import torch


def padded(ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, None, torch.Tensor]:
    """One row a prompt, pads at the right."""
    lengths = torch.tensor([len(x) for x in ids])
    # Pads come after the pooled token, so any id will do.
    input_ids = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    for row, x in zip(input_ids, ids, strict=True):
        row[: len(x)] = torch.tensor(x)
    return input_ids, None, torch.arange(len(ids)) * input_ids.shape[1] + lengths - 1


def in_two_blocks(lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """The places of the longer prompts and of the shorter ones, cut where that takes the fewest pads.

    Neither is empty, since ranks that share a model meet in each forward pass.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest, count = lengths[order[0]], len(order)
    cut = min(range(1, count), key=lambda k: k * longest + (count - k) * lengths[order[k]])
    return order[:cut], order[cut:]


def padded_in_two(ids: Sequence[Sequence[int]]) -> tuple[tuple[torch.Tensor, torch.Tensor], None, torch.Tensor]:
    """Two padded blocks (`in_two_blocks`), the ends of the second behind those of the first."""
    longer, shorter = in_two_blocks([len(x) for x in ids])
    (first, _, first_ends), (second, _, second_ends) = (padded([ids[i] for i in part]) for part in (longer, shorter))
    ends = torch.zeros(len(ids), dtype=torch.long)
    ends[shorter], ends[longer] = second_ends + first.numel(), first_ends
    return (first, second), None, ends


def side_by_side(ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All prompts in one row, positions counting anew in each."""
    flat = torch.tensor([token for x in ids for token in x])
    positions = torch.cat([torch.arange(len(x)) for x in ids])
    return flat[None], positions[None], torch.tensor([len(x) for x in ids]).cumsum(0) - 1
