"""The training loop: plan an epoch, take its steps, validate, keep the best judge, checkpoint, go on after a kill."""

import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import distributed
from tqdm import tqdm

from distill.config import Config, LossConfig
from distill.errors import UserError
from distill.records import LABELS, ORDERS, swap_labels
from students.checkpoints import Progress, StopRequest, load_checkpoint, save_checkpoint
from students.dataset import Example, Row, collate, micro_batches, plan_epoch
from students.engine import open_engine
from students.losses import Objective, cross_entropy_sum
from students.model import Judge
from students.pruning import stop_if_pruned
from students.tracking import Tracker

log = logging.getLogger(__name__)
TERMS = tuple(field.name for field in fields(LossConfig) if field.name != "rows")
HISTORY = pl.Schema(
    {
        "step": pl.Int64,
        "epoch": pl.Int64,
        "loss": pl.Float64,
        **dict.fromkeys(TERMS, pl.Float64),
        "grad_norm": pl.Float64,
        "lr": pl.Float64,
        "tokens": pl.Int64,
        "padding": pl.Float64,
        "seconds": pl.Float64,
        "validation_log_loss": pl.Float64,
    }
)


class Trainer:
    """Trains one judge on one fold. `folder` receives `adapter/` (`model/`), `checkpoints/` and `history.parquet`."""

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
        self.objective = Objective(config.loss)
        self.engine = open_engine(judge, config)
        self.device = self.engine.device
        self.lengths = [example.length for example in training]
        self.steps_per_epoch = math.ceil(len(training) / config.student.batch_conversations)
        self.total_steps = self.steps_per_epoch * config.student.epochs
        self.progress = load_checkpoint(self.engine, folder / "checkpoints")
        self.tracker.start(self.progress.history)
        self.checkpointed = time.monotonic()

    def train(self) -> Progress:
        """Run to the end; the best judge by validation log loss is in `folder`/adapter afterwards.

        A SIGTERM or Ctrl-C ends it after the step, with a checkpoint, by `SystemExit`.
        """
        student, progress = self.config.student, self.progress
        bar = tqdm(
            total=self.total_steps, initial=progress.step, unit="step", disable=self.rank > 0, dynamic_ncols=True
        )
        with StopRequest() as stop:
            for epoch in range(progress.step // self.steps_per_epoch, student.epochs):
                steps = plan_epoch(
                    self.lengths, student.batch_conversations, student.length_pool_steps, self.config.seed, epoch
                )
                for step in steps[progress.step - epoch * self.steps_per_epoch :]:
                    record = self.take_step(step, epoch)
                    end_of_epoch = progress.step % self.steps_per_epoch == 0
                    if end_of_epoch or (student.validate_every and progress.step % student.validate_every == 0):
                        record["validation_log_loss"] = self.validate()
                        self.keep_best(record["validation_log_loss"])
                    progress.history.append(record)
                    self.tracker.log(record)
                    bar.update()
                    rate = record["tokens"] / record["seconds"]
                    bar.set_postfix_str(f"loss {record['loss']:.4f}, {rate:.0f} tokens/s")
                    signalled = stop.anywhere(self.device)
                    if signalled or record["validation_log_loss"] is not None or self.checkpoint_is_due():
                        self.checkpoint()
                    if signalled and progress.step < self.total_steps:
                        log.info("stopped at step %d of %d; the same command goes on", progress.step, self.total_steps)
                        sys.exit(128 + signalled)
                    if record["validation_log_loss"] is not None and progress.step < self.total_steps:
                        stop_if_pruned(self.config, self.folder, progress, self.device)
        bar.close()
        return progress

    def take_step(self, step: list[int], epoch: int) -> dict[str, Any]:
        """One optimiser step over conversations `step`: both orders, all ranks, divided once by the global counts."""
        started, done = time.monotonic(), self.progress.step / self.total_steps
        self.set_rates(self.progress.step)
        # Dropout depends on the step and the rank alone, so a resumed run draws what the uninterrupted one would have.
        torch.manual_seed((self.config.seed * self.total_steps + self.progress.step) * self.world + self.rank)
        pieces = micro_batches(step, self.lengths, self.world, self.config.student.micro_batch_tokens)
        examples = [self.training[i] for i in step]
        voted = len(ORDERS) * sum(example.vote_weight for example in examples)
        taught = len(ORDERS) * sum(example.teacher_weight for example in examples)
        divisors, weights = self.objective.normalisers(voted, taught, len(step)), self.objective.weights(done)
        factors = (weights / divisors).to(self.device)
        sums = torch.zeros(len(factors), dtype=torch.float64)
        self.engine.train()
        for rows in pieces[self.rank]:
            terms = self.forward(rows, done)
            loss = (factors * terms).sum()
            if not torch.isfinite(loss):
                raise UserError(
                    f"loss is {loss.item()} at step {self.progress.step} on conversations "
                    f"{sorted({self.training[i].id for i, _ in rows})}: lower optimizer.lr or look at these rows"
                )
            self.engine.backward(loss * self.world)  # the engine averages over ranks; the counts are global already
            sums += terms.detach().double().cpu()
        self.engine.step()
        self.progress.step += 1
        distributed.all_reduce(sums)
        means = dict(zip(self.objective.names, (sums / divisors).tolist(), strict=True))
        tokens = sum(len(ids) for example in examples for ids in example.ids)
        padded = sum(self.width(rows) for rank in pieces for rows in rank if rows)
        return {
            "step": self.progress.step,
            "epoch": epoch,
            "loss": sum(weight * mean for weight, mean in zip(weights.tolist(), means.values(), strict=True)),
            **{name: means.get(name) for name in TERMS},
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "lr": self.engine.optimizer.param_groups[0]["lr"],
            "tokens": tokens,
            "padding": 1 - tokens / padded,
            "seconds": time.monotonic() - started,
            "validation_log_loss": None,
        }

    def forward(self, rows: list[Row], done: float) -> torch.Tensor:
        """The summed terms of one micro-batch. Raises `UserError` where it does not fit into memory."""
        batch = collate(rows, self.training, self.device, self.config.engine.padding_free)
        try:
            logits = self.engine(batch.input_ids, batch.positions, batch.ends)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory at step {self.progress.step} with {batch.input_ids.numel()} tokens in a micro-batch: "
                f"lower student.micro_batch_tokens={self.config.student.micro_batch_tokens}, set "
                "student.gradient_checkpointing=true, or spread the model with engine=zero3"
            ) from error
        return self.objective.sums(logits, batch, done)

    def width(self, rows: list[Row]) -> int:
        """Tokens of a micro-batch, pads included."""
        lengths = [len(self.training[i].ids[order]) for i, order in rows]
        return sum(lengths) if self.config.engine.padding_free else len(rows) * max(lengths)

    @torch.no_grad()
    def validate(self) -> float:
        """Log loss (nats) of the swap-averaged logits against votes, over the validation conversations of all ranks."""
        self.engine.eval()
        lengths = [example.length for example in self.validation]
        logits = torch.zeros(len(self.validation), len(LABELS))
        for rows in micro_batches(range(len(lengths)), lengths, self.world, self.config.student.micro_batch_tokens)[
            self.rank
        ]:
            batch = collate(rows, self.validation, self.device, self.config.engine.padding_free)
            shown_rows = self.engine(batch.input_ids, batch.positions, batch.ends).float().cpu()
            for (i, order), shown in zip(rows, shown_rows, strict=False):  # a dummy row has no name
                logits[i] += (shown if order == 0 else shown[list(swap_labels(range(len(LABELS))))]) / len(ORDERS)
        distributed.all_reduce(logits)  # each conversation is whole on one rank and zero on the others
        self.tracker.sample(logits, self.progress.step)
        voted = [(row, e.votes) for row, e in zip(logits, self.validation, strict=True) if e.votes]
        averaged, votes = torch.stack([row for row, _ in voted]), torch.tensor([v for _, v in voted])
        return cross_entropy_sum(averaged, votes, torch.ones(len(averaged))).item() / len(averaged)

    def set_rates(self, step: int) -> None:
        """Linear warm-up, then the decay; a function of the step alone, so no scheduler state can be lost."""
        factor = rate_factor(step, self.total_steps, self.config.optimizer.warmup, self.config.optimizer.decay)
        for group, rate in zip(
            self.engine.optimizer.param_groups, (self.config.optimizer.lr, self.config.optimizer.head_lr), strict=True
        ):
            group["lr"] = rate * factor

    def keep_best(self, log_loss: float) -> None:
        """Save the judge if it is the best so far."""
        if log_loss >= self.progress.best_log_loss:
            return
        self.progress.best_log_loss, self.progress.best_step = log_loss, self.progress.step
        self.judge.save(self.folder, gathered=self.config.engine.zero_stage < 3, write=self.rank == 0)
        distributed.barrier()

    def checkpoint_is_due(self) -> bool:
        """Whether `engine.checkpoint_minutes` have passed, by the first rank's clock."""
        passed = time.monotonic() - self.checkpointed > 60 * self.config.engine.checkpoint_minutes
        due = torch.tensor(int(passed and self.rank == 0), device=self.device)
        distributed.broadcast(due, 0)
        return bool(due)

    def checkpoint(self) -> None:
        """Save all that a resumed run needs."""
        save_checkpoint(self.engine, self.folder / "checkpoints", self.progress)
        if self.rank == 0:
            write_history(self.folder / "history.parquet", self.progress.history)
        self.checkpointed = time.monotonic()


def rate_factor(step: int, total: int, warmup: float, decay: str) -> float:
    """The share of the peak learning rate at `step` of `total`.

    Linear over the first `warmup` share of the steps, then `decay`: cosine or linear to zero, or constant.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[decay]


def write_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """The training curve as parquet, replaced atomically."""
    partial = path.with_name(f".{path.name}.partial")
    pl.DataFrame(history, schema=HISTORY).write_parquet(partial)
    partial.replace(path)
