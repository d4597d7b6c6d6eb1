"""The score head that a training begins with: drawn anew, a judge's own, or what a language model knows already."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from core.models.label_tokens import label_token_ids, output_rows
from core.records import LABELS
from students.merging import stored_head

log = logging.getLogger(__name__)


class Head(nn.Linear):
    """A linear layer that computes in fp32, whatever type its weights are in."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden.float(), self.weight.float())


def start_head(drawn: nn.Parameter, base: Path, wanted: str, label_tokens: Sequence[str]) -> Head:
    """The head [3, width] to begin with, in fp32, as `model.head` says; `drawn` is what transformers made.

    With `label_tokens` its rows are those of the base's output matrix for these tokens, each less the mean of the
    three: the softmax over the labels stays that of the language model, and the logits stay small. Raises `UserError`
    where the base has no such rows.
    """
    head = Head(drawn.shape[1], len(LABELS), bias=False, device="meta")  # draws nothing from the seed
    if wanted == "label_tokens":
        rows = output_rows(base, label_token_ids(label_tokens, base))
        log.info("the score head is the base's outputs for %s", ", ".join(map(repr, label_tokens)))
        head.weight = nn.Parameter(rows - rows.mean(dim=0))
        return head
    own, reason = stored_head(base)
    if own is not None and wanted == "auto":
        log.info("the score head is the base's: %s", reason)
        head.weight = nn.Parameter(own.float())
        return head
    log.info("the score head is drawn anew: %s", reason if own is None else "model.head=new")
    head.weight = nn.Parameter(drawn.detach().float())
    if own is not None:  # transformers has loaded it
        nn.init.normal_(head.weight, std=own.std().item())
    return head
