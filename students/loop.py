"""The training loop: plan an epoch, take its steps, validate, keep the best adapter, checkpoint, go on after a kill."""

import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import distributed
from tqdm import tqdm

from distill.config import Config
from distill.records import LABELS, ORDERS, swap_labels
from students.dataset import Batch, Example, collate, micro_batches, plan_epoch
from students.engine import open_engine, whole_parameters
from students.losses import cross_entropy_sum, kl_divergence_sum
from students.model import Judge
from students.tracking import Tracker

log = logging.getLogger(__name__)
HISTORY = pl.Schema(
    {
        "step": pl.Int64,
        "epoch": pl.Int64,
        "loss": pl.Float64,
        "cross_entropy": pl.Float64,
        "kl_divergence": pl.Float64,
        "grad_norm": pl.Float64,
        "lr": pl.Float64,
        "tokens": pl.Int64,
        "padding": pl.Float64,
        "seconds": pl.Float64,
        "validation_log_loss": pl.Float64,
    }
)


@dataclass
class Progress:
    """What a checkpoint restores beside the engine's state."""

    step: int
    best_log_loss: float
    best_step: int
    history: list[dict[str, Any]]


class Trainer:
    """Trains one judge on one fold. `folder` receives `adapter/`, `checkpoints/` and `history.parquet`."""

    def __init__(
        self,
        config: Config,
        judge: Judge,
        training: list[Example],
        validation: list[Example],
        folder: Path,
        tracker: Tracker,
    ):
        self.config, self.judge, self.training, self.validation = config, judge, training, validation
        self.folder, self.tracker = folder, tracker
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.engine = open_engine(judge, config)
        self.device = self.engine.device
        self.lengths = [max(map(len, e.ids)) for e in training]
        self.steps_per_epoch = math.ceil(len(training) / config.student.batch_conversations)
        self.total_steps = self.steps_per_epoch * config.student.epochs
        self.progress = self.resume()

    def train(self) -> Progress:
        """Run to the end; the best adapter by validation log loss is in `folder`/adapter afterwards."""
        student, progress = self.config.student, self.progress
        bar = tqdm(
            total=self.total_steps, initial=progress.step, unit="step", disable=self.rank > 0, dynamic_ncols=True
        )
        for epoch in range(progress.step // self.steps_per_epoch, student.epochs):
            steps = plan_epoch(
                self.lengths, student.batch_conversations, student.length_pool_steps, self.config.seed, epoch
            )
            for step in steps[progress.step - epoch * self.steps_per_epoch :]:
                record = self.take_step(step, epoch)
                end_of_epoch = progress.step % self.steps_per_epoch == 0
                if end_of_epoch or (student.validate_every and progress.step % student.validate_every == 0):
                    record["validation_log_loss"] = self.validate()
                progress.history.append(record)
                self.tracker.log({k: v for k, v in record.items() if v is not None}, progress.step)
                bar.update()
                bar.set_postfix(loss=f"{record['loss']:.4f}", tokens_s=f"{record['tokens'] / record['seconds']:.0f}")
                if record["validation_log_loss"] is not None:
                    self.keep_best(record["validation_log_loss"])
                    self.checkpoint()
        bar.close()
        return progress

    def take_step(self, step: list[int], epoch: int) -> dict[str, Any]:
        """One optimiser step over conversations `step`: both orders, all ranks, divided once by the global counts."""
        started, loss_config = time.monotonic(), self.config.loss
        self.set_rates(self.progress.step)
        # Dropout depends on the step and the rank alone, so a resumed run draws what the uninterrupted one would have.
        torch.manual_seed((self.config.seed * self.total_steps + self.progress.step) * self.world + self.rank)
        pieces = micro_batches(step, self.lengths, self.world, self.config.student.micro_batch_tokens)
        voted = len(ORDERS) * sum(self.training[i].votes is not None for i in step)
        taught = len(ORDERS) * sum(self.training[i].teacher is not None for i in step)
        sums = torch.zeros(2, dtype=torch.float64)
        self.engine.train()
        for rows in pieces[self.rank]:
            batch = collate(rows, self.training, self.device)
            cross_entropy, divergence = self.losses(batch)
            loss = (1 - loss_config.soft_weight) * cross_entropy / max(
                voted, 1
            ) + loss_config.soft_weight * divergence / max(taught, 1)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"loss is {loss.item()} at step {self.progress.step} on conversations "
                    f"{[self.training[i].id for i, _ in rows]}: lower optimizer.lr or look at these rows"
                )
            self.engine.backward(loss * self.world)  # the engine averages over ranks; the counts are global already
            sums += torch.tensor([cross_entropy.item(), divergence.item()], dtype=torch.float64)
        self.engine.step()
        self.progress.step += 1
        distributed.all_reduce(sums)
        mean_ce, mean_kl = sums[0].item() / max(voted, 1), sums[1].item() / max(taught, 1)
        tokens = sum(len(self.training[i].ids[order]) for i in step for order in range(len(ORDERS)))
        padded = sum(
            len(rows) * max(len(self.training[i].ids[order]) for i, order in rows)
            for rank in pieces
            for rows in rank
            if rows
        )
        return {
            "step": self.progress.step,
            "epoch": epoch,
            "loss": (1 - loss_config.soft_weight) * mean_ce + loss_config.soft_weight * mean_kl,
            "cross_entropy": mean_ce if voted else None,
            "kl_divergence": mean_kl if taught else None,
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "lr": self.engine.optimizer.param_groups[0]["lr"],
            "tokens": tokens,
            "padding": 1 - tokens / padded,
            "seconds": time.monotonic() - started,
            "validation_log_loss": None,
        }

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross-entropy and summed T^2 KL of one micro-batch."""
        logits = self.engine(batch.input_ids, batch.lengths)
        return (
            cross_entropy_sum(logits, batch.votes, batch.vote_weights),
            kl_divergence_sum(logits, batch.teacher, batch.teacher_weights, self.config.loss.temperature),
        )

    @torch.no_grad()
    def validate(self) -> float:
        """Log loss (nats) of the swap-averaged logits against votes, over the validation conversations of all ranks."""
        self.engine.eval()
        lengths = [max(map(len, e.ids)) for e in self.validation]
        logits = torch.zeros(len(self.validation), len(LABELS))
        for rows in micro_batches(range(len(lengths)), lengths, self.world, self.config.student.micro_batch_tokens)[
            self.rank
        ]:
            batch = collate(rows, self.validation, self.device)
            for (i, order), shown in zip(rows, self.engine(batch.input_ids, batch.lengths).float().cpu(), strict=False):
                logits[i] += (shown if order == 0 else shown[list(swap_labels(range(len(LABELS))))]) / len(ORDERS)
        distributed.all_reduce(logits)  # each conversation is whole on one rank and zero on the others
        voted = [(row, e.votes) for row, e in zip(logits, self.validation, strict=True) if e.votes]
        averaged, votes = torch.stack([row for row, _ in voted]), torch.tensor([v for _, v in voted])
        return cross_entropy_sum(averaged, votes, torch.ones(len(averaged))).item() / len(averaged)

    def set_rates(self, step: int) -> None:
        """Linear warm-up, then a cosine to zero; a function of the step alone, so no scheduler state can be lost."""
        factor = rate_factor(step, self.total_steps, self.config.optimizer.warmup)
        for group, rate in zip(
            self.engine.optimizer.param_groups, (self.config.optimizer.lr, self.config.optimizer.head_lr), strict=True
        ):
            group["lr"] = rate * factor

    def keep_best(self, log_loss: float) -> None:
        """Save the adapter (PEFT layout, score head included) if it is the best so far."""
        if log_loss >= self.progress.best_log_loss:
            return
        self.progress.best_log_loss, self.progress.best_step = log_loss, self.progress.step
        with whole_parameters(self.judge, self.config):
            if self.rank == 0:
                partial = self.folder / ".adapter.partial"
                self.judge.peft_model.save_pretrained(str(partial), save_embedding_layers=False)
                (partial / "README.md").unlink(missing_ok=True)  # a model card template with nothing filled in
                shutil.rmtree(self.folder / "adapter", ignore_errors=True)
                partial.rename(self.folder / "adapter")
        distributed.barrier()

    def checkpoint(self) -> None:
        """Save all that a resumed run needs; the newest checkpoint replaces the one before."""
        folder, tag = self.folder / "checkpoints", f"step-{self.progress.step}"
        state = {"progress": json.dumps(vars(self.progress))}
        self.engine.save_checkpoint(str(folder), tag=tag, client_state=state, exclude_frozen_parameters=True)
        if self.rank == 0:
            write_history(self.folder / "history.parquet", self.progress.history)
            for old in folder.glob("step-*"):
                if old.name != tag:
                    shutil.rmtree(old)
        distributed.barrier()

    def resume(self) -> Progress:
        """Load the newest checkpoint, or start at step 0 where there is none."""
        if not (self.folder / "checkpoints" / "latest").exists():
            return Progress(0, math.inf, 0, [])
        path, state = self.engine.load_checkpoint(str(self.folder / "checkpoints"), load_module_strict=False)
        progress = Progress(**json.loads(state["progress"]))
        log.info("going on from step %d (%s)", progress.step, path)
        return progress


def rate_factor(step: int, total: int, warmup: float) -> float:
    """The share of the peak learning rate at `step` of `total`.

    Linear over the first `warmup` share of the steps, then a cosine to zero.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def write_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """The training curve as parquet, replaced atomically."""
    partial = path.with_name(f".{path.name}.partial")
    pl.DataFrame(history, schema=HISTORY).write_parquet(partial)
    partial.replace(path)
