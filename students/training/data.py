"""What a judge is trained on: conversations as token ids with their targets, and batches of them."""

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.errors import UserError
from core.labels import Labels
from core.prompts import Rendered
from core.records import LABELS, ORDERS, TEST, Conversation, swap_labels
from core.store.targets import entropy
from students.training.config import RowWeightsConfig
from students.training.padding import padded, padded_in_two, side_by_side
from students.training.steps import BatchRow, PromptNumbers

log = logging.getLogger(__name__)
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation ready for training: token ids of both orders, and targets in its own a/b order.

    For a pointwise judge, order "ab" shows response a alone, and "ba" response b. A target that is missing has weight
    0. `group` is that of its prompt.
    """

    id: str
    ids: tuple[list[int], list[int]]
    votes: tuple[float, float, float] | None
    teacher: tuple[float, float, float] | None
    vote_weight: float = 1.0
    teacher_weight: float = 1.0
    group: str = ""

    @property
    def length(self) -> int:
        """Tokens of the longer order."""
        return max(map(len, self.ids))


@dataclass(frozen=True, slots=True)
class Batch:
    """A forward pass over whole conversations: targets [rows, 3] as shown, weights [rows].

    Padded: `input_ids` [prompts, tokens] with pads at the right, or two such blocks, and `positions` None.
    Padding-free: [1, all tokens], and `positions` count anew in each prompt. `ends` [rows] is where the last token of
    each row's prompt lies in the flattened ids: rows with equal prompts have the same.
    """

    input_ids: torch.Tensor | tuple[torch.Tensor, ...]
    positions: torch.Tensor | None
    ends: torch.Tensor
    votes: torch.Tensor
    vote_weights: torch.Tensor
    teacher: torch.Tensor
    teacher_weights: torch.Tensor


def make_examples(
    conversations: Sequence[Conversation],
    rendered: Iterable[Rendered],
    targets: Mapping[str, Sequence[float]] | None,
    rows: RowWeightsConfig,
    labels: Labels = LABELS,
) -> list[Example]:
    """Join conversations, their prompts and the teacher's swap-averaged logits by id; `rows` says what each counts.

    Where both orders have the same ids, a and b get the same share of the targets; the log says how many those are.
    Raises `UserError` as `check_targets` does.
    """
    check_targets(conversations, targets)
    prompts = {(r.id, r.order): r.ids for r in rendered}
    examples = []
    for c in conversations:
        ids = prompts[c.id, ORDERS[0]], prompts[c.id, ORDERS[1]]
        votes = None if c.votes is None else _distribution(c.votes)
        teacher = None if targets is None else _triple(targets[c.id])
        if ids[0] == ids[1]:
            votes, teacher = _without_sides(votes, teacher)
        examples.append(
            Example(
                id=c.id,
                ids=ids,
                votes=votes,
                teacher=teacher,
                vote_weight=vote_weight(c, rows),
                teacher_weight=0.0 if teacher is None else teacher_weight(c, teacher, rows, labels),
                group=c.group,
            )
        )
    if alike := sum(e.ids[0] == e.ids[1] for e in examples):
        log.info(
            "%d of %d conversations look the same in both orders (equal responses, or what differs was cut): no judge "
            "can tell a from b there, so their targets give both the same share",
            alike,
            len(examples),
        )
    return examples


def check_targets(conversations: Sequence[Conversation], targets: Mapping[str, Sequence[float]] | None) -> None:
    """Raise `UserError` naming conversations for which `targets` has no logits, or that have no target at all."""
    missing = [c.id for c in conversations if targets is not None and c.id not in targets]
    if missing:
        raise UserError(
            f"the teacher's logits lack {len(missing)} of {len(conversations)} conversations, such as {missing[:3]}: "
            "score them first (make teacher-logits)"
        )
    without = [c.id for c in conversations if targets is None and c.votes is None]
    if without:
        raise UserError(
            f"{len(without)} conversations have no votes, such as {without[:3]}: "
            "train them with a loss that has a teacher, such as loss=distill"
        )


def vote_weight(conversation: Conversation, rows: RowWeightsConfig) -> float:
    """What the votes count: one, or as many as people voted, times the source's weight; 0 without votes."""
    if conversation.votes is None:
        return 0.0
    count = sum(conversation.votes) if rows.votes == "count" else 1.0
    return count * rows.sources.get(conversation.source, 1.0)


def teacher_weight(
    conversation: Conversation, logits: Sequence[float], rows: RowWeightsConfig, labels: Labels = LABELS
) -> float:
    """What the teacher's logits count: (1 - entropy / its largest)^confidence times the source's weight."""
    sure = max(0.0, 1 - entropy(logits[: len(labels)]) / math.log(len(labels)))
    return sure**rows.confidence * rows.sources.get(conversation.source, 1.0)


def split(
    conversations: Sequence[Conversation], fold: int, validation_share: float
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, validation): neither holds the fold `fold` or the test split, a prompt group is never in both.

    The validation part chooses the checkpoint; it has votes. It follows from the prompts alone, so it is the same for
    every seed, and for the teacher and the student of one fold.
    """
    if not any(c.fold == fold for c in conversations):
        raise UserError(
            f"fold={fold}: no conversation is in that fold; folds here: {sorted({c.fold for c in conversations})}"
        )
    rest = [c for c in conversations if c.fold not in (fold, TEST)]
    groups = sorted({c.group for c in rest}, key=lambda group: hashlib.sha256(f"validation {group}".encode()).digest())
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
        raise UserError(
            f"the validation part of fold={fold} has no votes: raise train.validation_share or check the data"
        )
    return training, validation


def prompt_numbers(examples: Sequence[Example]) -> list[PromptNumbers]:
    """For each example a number of either prompt; equal prompts have equal numbers, on every rank."""
    return [(hash(tuple(first)), hash(tuple(second))) for first, second in (example.ids for example in examples)]


def collate(
    rows: Sequence[BatchRow],
    examples: Sequence[Example],
    device: torch.device,
    padding_free: bool = False,
    *,
    in_two: bool = False,
) -> Batch:
    """A batch of `rows`, their targets permuted to the order shown. No rows: a dummy conversation of weight 0.

    Padded, `in_two` cuts it into longer and shorter prompts: of two responses one may be far longer.
    """
    shown = rows or [(0, 0), (0, 1)]
    ids, places = distinct_prompts(shown, examples)
    if in_two and len(ids) == 1:
        ids, places = ids * 2, [row % 2 for row in range(len(shown))]  # both blocks have a part in the gradient
    layout = side_by_side if padding_free else padded_in_two if in_two else padded
    input_ids, positions, ends = layout(ids)
    votes = _turned([examples[i].votes for i, _ in shown], shown)
    teacher = _turned([examples[i].teacher for i, _ in shown], shown)
    vote_weights = torch.tensor([examples[i].vote_weight * bool(rows) for i, _ in shown])
    teacher_weights = torch.tensor([examples[i].teacher_weight * bool(rows) for i, _ in shown])
    tensors = (ends[places], votes, vote_weights, teacher, teacher_weights)
    return Batch(
        input_ids.to(device) if isinstance(input_ids, torch.Tensor) else tuple(block.to(device) for block in input_ids),
        None if positions is None else positions.to(device),
        *(t.to(device) for t in tensors),
    )


def distinct_prompts(rows: Sequence[BatchRow], examples: Sequence[Example]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The different prompts of `rows`, in the order in which they first stand there, and which of them each row has."""
    places: dict[tuple[int, ...], int] = {}
    of_rows = [places.setdefault(tuple(examples[i].ids[order]), len(places)) for i, order in rows]
    return [*places], of_rows


def _turned(values: Sequence[tuple[float, float, float] | None], rows: Sequence[BatchRow]) -> torch.Tensor:
    shown = [
        (0.0,) * len(LABELS) if v is None else v if order == 0 else swap_labels(v)
        for v, (_, order) in zip(values, rows, strict=True)
    ]
    return torch.tensor(shown, dtype=torch.float32)


def _without_sides(votes: Triple | None, logits: Triple | None) -> tuple[Triple | None, Triple | None]:
    """Vote shares and logits for an input that shows no difference between a and b: the mean over their swap.

    The mean is that of probabilities, not of logits: a and b share what either had, and the tie keeps its own.
    """
    if votes is not None:
        a, b, tie = votes
        votes = (a + b) / 2, (a + b) / 2, tie
    if logits is not None:
        a, b, tie = logits
        logits = (both := float(np.logaddexp(a, b)) - math.log(2)), both, tie
    return votes, logits


def _distribution(votes: Sequence[float]) -> tuple[float, float, float]:
    total = sum(votes)
    return _triple([v / total for v in votes])


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    a, b, tie = map(float, values)
    return a, b, tie
