"""Whole runs of four steps with the real trainer: dropout, Adam, a schedule, a checkpoint after each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.training_run import recipe
from students.training.collectives import process_group
from students.training.loop import Trainer
from students.training.model import build_judge
from students.training.tracking import Tracker
from tests.composing import configured
from tests.students.training.single_steps import make_conversations, partition_all, trained_values

CONVERSATIONS = make_conversations(8)
PROMPTS = [ids for conversation in CONVERSATIONS for ids in conversation.ids]
STEPS = 4
CURVE = ("step", "epoch", "loss", "grad_norm", "lr", "validation_log_loss")


@dataclass(frozen=True)
class Run:
    """The curve, what was trained, what of it was saved, and the logits [prompts, 3] of the trained judge."""

    curve: list[tuple[Any, ...]]
    values: dict[str, torch.Tensor]
    logits: np.ndarray


def train(base: Path, stage: int, folder: Path, dies_in: int | None = None, overrides: Sequence[str] = ()) -> Run:
    """Train with dropout, Adam and a schedule, and a checkpoint after each step."""
    config = configured(
        *("+exp=smoke", "loss=votes", "model.layers=null", "train.batch_conversations=4", "train.epochs=2"),
        *("optimizer.lr=0.01", "optimizer.head_lr=0.01", "optimizer.warmup=0.25", "engine.checkpoint_minutes=0"),
        *(f"engine=zero{stage}", *overrides),
    )
    with process_group(), pytest.MonkeyPatch.context() as patch:
        partition_all(patch)
        judge = build_judge(base, config.model, config.engine, config.seed)
        trainer = Trainer(recipe(config), judge, CONVERSATIONS, CONVERSATIONS, folder, Tracker())
        take_step = trainer.take_step

        def take(step: list[int], epoch: int) -> dict[str, Any]:
            if trainer.state.step + 1 == dies_in:
                raise KeyboardInterrupt
            return take_step(step, epoch)

        trainer.take_step = take  # type: ignore[method-assign]
        history = trainer.train().history
        trainer.save()
        trainer.engine.eval()
        with torch.no_grad():
            logits = [trainer.engine(torch.tensor([x]), None, torch.tensor([len(x) - 1]))[0] for x in PROMPTS]
        values = trained_values(judge, partitioned=stage == 3)
    return Run([tuple(record[name] for name in CURVE) for record in history], values, torch.stack(logits).numpy())
