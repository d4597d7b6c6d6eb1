"""The score head that a training begins with: drawn anew, a judge's own, or what a language model knows already."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from core.errors import UserError
from core.labels import Labels
from core.models.label_tokens import OF_ONE_RESPONSE, label_token_ids, output_rows
from core.pointwise import choice_in
from core.records import LABELS
from students.merging import stored_head, stored_rows
from students.training.pairing import LearntChoice

log = logging.getLogger(__name__)


class Head(nn.Linear):
    """A linear layer that computes in fp32, whatever type its weights are in."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden.float(), self.weight.float())


def start_head(
    drawn: nn.Parameter, base: Path, wanted: str, label_tokens: Sequence[str], outputs: Sequence[str] = LABELS
) -> Head:
    """The head [outputs, width] to begin with, in fp32, as `model.head` says; `drawn` is what transformers made.

    With `label_tokens` its rows are those of the base's output matrix for these tokens, each less the mean of the
    three: the softmax over the labels stays that of the language model, and the logits stay small. A pointwise judge's
    one row is that of the first token less that of the second, their log odds. Raises `UserError` where the base has no
    such rows, and with `wanted` "base" where it has no such head.
    """
    head = Head(drawn.shape[1], len(outputs), bias=False, device="meta")  # draws nothing from the seed
    if wanted == "label_tokens":
        pointwise = len(outputs) == 1
        rows = output_rows(base, label_token_ids(label_tokens, base, OF_ONE_RESPONSE if pointwise else LABELS))
        log.info("the score head is the base's outputs for %s", ", ".join(map(repr, label_tokens)))
        head.weight = nn.Parameter(rows[:1] - rows[1:] if pointwise else rows - rows.mean(dim=0))
        return head
    own, reason = stored_head(base, outputs)
    if own is None and wanted == "base":
        raise UserError(f"model.head=base: {reason}; give model.head=new, or a base with such a head")
    if own is not None and wanted != "new":
        log.info("the score head is the base's: %s", reason)
        head.weight = nn.Parameter(own.float())
        return head
    log.info("the score head is drawn anew: %s", reason if own is None else "model.head=new")
    head.weight = nn.Parameter(drawn.detach().float())
    if (stored := stored_rows(base)) is not None and stored.shape == drawn.shape:  # transformers has loaded it
        nn.init.normal_(head.weight, std=stored.float().std().item())
    return head


def start_choice(base: Path, wanted: str, labels: Labels) -> LearntChoice:
    """What a pointwise judge's rewards go through: as the base has learnt it where its head is kept, else 1 and 0."""
    own = choice_in(base) if wanted in ("auto", "base") else None
    return LearntChoice(ties=len(labels) == len(LABELS), start=own)
