"""The training loop: plan an epoch, take its steps, validate, keep the best judge, save checkpoints, resume."""

import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from core.errors import UserError
from core.labels import Labels
from core.records import LABELS, ORDERS
from students.training.checkpoints import RunState, StopRequest, load_checkpoint, save_checkpoint
from students.training.collectives import from_first, rank, total, world
from students.training.config import LossConfig, OptimizerConfig
from students.training.data import Example, collate, distinct_prompts, prompt_numbers
from students.training.engine import open_deepspeed
from students.training.losses import Objective
from students.training.model import JudgeModel
from students.training.optuna_studies import Trial
from students.training.padding import in_two_blocks
from students.training.progress import TrainingProgress
from students.training.pruning import stop_if_pruned
from students.training.ranks import UnreachableError, fail_together, raise_together
from students.training.recipe import Recipe
from students.training.steps import BatchRow, micro_batches, plan_epoch
from students.training.tracking import Tracker
from students.training.validation import Validation, better, score, swap_averaged, validation

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
        "validation_objective": pl.Float64,
        "validation_standard_error": pl.Float64,
        "validation_kept": pl.Boolean,
    }
)
VALIDATED = tuple(name for name in HISTORY if name.startswith("validation_"))


class Trainer:
    """Trains one judge on one fold, for votes of `labels`.

    `folder` receives `adapter/` (`model/`), `checkpoints/` and `history.parquet`.
    """

    def __init__(
        self,
        recipe: Recipe,
        judge: JudgeModel,
        training: list[Example],
        validation: list[Example],
        folder: Path,
        tracker: Tracker,
        trial: Trial | None = None,
        labels: Labels = LABELS,
    ):
        self.recipe, self.judge, self.training, self.validation = recipe, judge, training, validation
        self.folder, self.tracker, self.trial = folder, tracker, trial
        self.rank, self.world = rank(), world()
        self.objective = Objective(recipe.loss, labels)
        self.engine = open_deepspeed(judge, recipe.optimizer, recipe.engine)
        self.device = self.engine.device
        self.in_two = judge.choice is not None and not recipe.engine.padding_free
        self.lengths, self.prompts = [example.length for example in training], prompt_numbers(training)
        train = recipe.train
        self.steps_per_epoch = math.ceil(len(training) / train.batch_conversations)
        self.total_steps = self.steps_per_epoch * train.epochs
        self.scheduled_steps = self.steps_per_epoch * (train.schedule_epochs or train.epochs)
        if self.scheduled_steps < self.total_steps:
            raise_together(
                UserError(
                    f"train.schedule_epochs={train.schedule_epochs} ends before train.epochs={train.epochs}: "
                    "give it as many or more, or null"
                )
            )
        self.state = load_checkpoint(self.engine, folder / "checkpoints")
        self.tracker.start(self.state.history)
        self.checkpointed = time.monotonic()

    def train(self) -> RunState:
        """Run to the end; the judge that `keep_best` chose is in `folder`/adapter afterwards.

        A SIGTERM or Ctrl-C ends it after the step, with a checkpoint, by `SystemExit`.
        """
        train, state = self.recipe.train, self.state
        progress = TrainingProgress(self.folder.parent.name, self.total_steps, state.step, self.rank)
        with StopRequest() as stop:
            for epoch in range(state.step // self.steps_per_epoch, train.epochs):
                for step in self.steps_of(epoch)[state.step - epoch * self.steps_per_epoch :]:
                    # Take the step, and validate where it is time.
                    record = self.take_step(step, epoch)
                    if validated := self.validation_is_due():
                        found = self.validate()
                        record |= found.record() | {"validation_kept": self.keep_best(found.objective)}

                    # Show it.
                    state.history.append(record)
                    with fail_together():
                        self.tracker.log(record)
                    progress.advance(record)

                    # Save a checkpoint where it is time, then stop if a signal or the search asks for it.
                    signalled, more = stop.anywhere(), state.step < self.total_steps
                    if signalled or validated or self.checkpoint_is_due():
                        self.checkpoint()
                    if signalled and more:
                        message = "stopped at step %d of %d; rerun the same command to resume"
                        log.info(message, state.step, self.total_steps)
                        sys.exit(128 + signalled)
                    if validated and more:
                        stop_if_pruned(self.trial, self.folder, state)
        progress.close()
        return state

    def steps_of(self, epoch: int) -> list[list[int]]:
        """The places in `training` of the conversations of each step."""
        train = self.recipe.train
        settings = (train.batch_conversations, train.length_pool_steps, self.recipe.seed, epoch)
        return plan_epoch(self.lengths, *settings, self.prompts)

    def take_step(self, step: list[int], epoch: int) -> dict[str, Any]:
        """One optimiser step over conversations `step`: both orders, all ranks, divided once by the global counts."""
        started = time.monotonic()
        self.set_rates(self.state.step)
        # Dropout depends on the step and the rank alone, so a resumed run draws what the uninterrupted one would have.
        torch.manual_seed((self.recipe.seed * self.total_steps + self.state.step) * self.world + self.rank)

        # What the sums are divided by: the counts of the whole step, on all ranks.
        examples = [self.training[i] for i in step]
        voted = len(ORDERS) * sum(example.vote_weight for example in examples)
        taught = len(ORDERS) * sum(example.teacher_weight for example in examples)
        divisors, weights = self.objective.normalisers(voted, taught), self.objective.weights
        factors = (weights / divisors).to(self.device)

        # Forward and backward over this rank's micro-batches.
        pieces = micro_batches(step, self.lengths, self.world, self.recipe.engine.micro_batch_tokens, self.prompts)
        sums = torch.zeros(len(factors), dtype=torch.float64)
        self.engine.train()
        for rows in pieces[self.rank]:
            sums += self.accumulate(rows, factors)

        # Update the weights. ZeRO silently leaves out a step that is not finite.
        with self.enough_memory(UnreachableError):
            self.engine.step()
        self.state.step += 1
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        if not (self.engine.was_step_applied() and math.isfinite(norm)):
            raise_together(self.not_finite("gradient norm", norm, examples, self.state.step))

        # The row of the history.
        means = dict(zip(self.objective.names, (total(sums) / divisors).tolist(), strict=True))
        tokens, padded = np.sum([self.tokens(rows) for rank in pieces for rows in rank if rows], axis=0).tolist()
        return {
            "step": self.state.step,
            "epoch": epoch,
            "loss": sum(weight * mean for weight, mean in zip(weights.tolist(), means.values(), strict=True)),
            **{name: means.get(name) for name in TERMS},
            "grad_norm": norm,
            "lr": self.engine.optimizer.param_groups[0]["lr"],
            "tokens": tokens,
            "padding": 1 - tokens / padded,
            "seconds": time.monotonic() - started,
            **dict.fromkeys(VALIDATED),
        }

    def accumulate(self, rows: list[BatchRow], factors: torch.Tensor) -> torch.Tensor:
        """Add a micro-batch's gradients to those of the step; its sums [terms], not yet divided."""
        with fail_together():
            terms = self.forward(rows)
            loss = (factors * terms).sum()
            if not torch.isfinite(loss):
                here = [self.training[i] for i, _ in rows]
                raise self.not_finite("loss", loss.item(), here, self.state.step + 1)
        with self.enough_memory(UnreachableError):
            self.engine.backward(loss * self.world)  # the engine averages over ranks; the counts are global already
        return terms.detach().double().cpu()

    def forward(self, rows: list[BatchRow]) -> torch.Tensor:
        """The summed terms of one micro-batch. Raises `UserError` where it does not fit into memory."""
        with self.enough_memory(UnreachableError if self.recipe.engine.zero_stage == 3 else UserError):
            free, in_two = self.recipe.engine.padding_free, self.in_two
            batch = collate(rows, self.training, self.device, free, in_two=in_two)
            logits = self.engine(batch.input_ids, batch.positions, batch.ends)
            return self.objective.sums(logits, batch)

    @contextmanager
    def enough_memory(self, kind: type[UserError]) -> Iterator[None]:
        """Raises `kind` where the device runs out of memory within: `UnreachableError` where ranks meet in there."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise kind(
                f"out of memory at step {self.state.step}: "
                f"lower engine.micro_batch_tokens={self.recipe.engine.micro_batch_tokens}, set "
                "engine.gradient_checkpointing=true, or spread the model with engine=zero3"
            ) from error

    def tokens(self, rows: list[BatchRow]) -> tuple[int, int]:
        """How many tokens of a micro-batch are computed, without pads and with them."""
        lengths = [len(ids) for ids in distinct_prompts(rows, self.training)[0]]
        if self.recipe.engine.padding_free:
            return sum(lengths), sum(lengths)
        lengths *= 2 if self.in_two and len(lengths) == 1 else 1
        blocks = in_two_blocks(lengths) if self.in_two else [range(len(lengths))]
        return sum(lengths), sum(len(block) * max(lengths[i] for i in block) for block in blocks)

    def validation_is_due(self) -> bool:
        """At the end of an epoch, and every `train.validate_every` steps."""
        every, step = self.recipe.train.validate_every, self.state.step
        return step % self.steps_per_epoch == 0 or bool(every and step % every == 0)

    def validate(self) -> Validation:
        """What the judge is worth on the validation conversations of all ranks; the same on all of them.

        Raises `UserError` naming conversations whose logits are not finite.
        """
        self.engine.eval()
        lengths = [example.length for example in self.validation]
        engine = self.recipe.engine
        numbers = prompt_numbers(self.validation)
        pieces = micro_batches(range(len(lengths)), lengths, self.world, engine.micro_batch_tokens, numbers)
        asked = (pieces[self.rank], self.device, engine.padding_free)
        own = score(self.engine, self.validation, *asked, in_two=self.in_two)
        logits = total(own)  # each conversation is whole on one rank and zero on the others
        if broken := [e for e, row in zip(self.validation, logits, strict=True) if not torch.isfinite(row).all()]:
            raise_together(self.not_finite("validation loss", math.nan, broken, self.state.step))
        with fail_together():
            self.tracker.sample(swap_averaged(logits), self.state.step)
        return validation(self.objective, logits, self.validation)

    @staticmethod
    def not_finite(what: str, value: float, examples: Sequence[Example], step: int) -> UserError:
        """The error for a step of which nothing may be saved."""
        return UserError(
            f"{what} is {value} at step {step} on conversations {sorted({e.id for e in examples})}: "
            "lower optimizer.lr or look at these rows"
        )

    def set_rates(self, step: int) -> None:
        """Linear warm-up, then the decay; a function of the step alone, so no scheduler state can be lost."""
        optimizer = self.recipe.optimizer
        factor = rate_factor(step, self.scheduled_steps, optimizer)
        for group, rate in zip(self.engine.optimizer.param_groups, (optimizer.lr, optimizer.head_lr), strict=True):
            group["lr"] = rate * factor

    def keep_best(self, objective: np.ndarray) -> bool:
        """Save the judge, unless the lowest `objective` [groups] so far is better beyond the standard error of the
        difference; whether it was saved.

        So noise seldom chooses an earlier judge, and a slow rise is measured from its bottom (the one-standard-error
        rule of Breiman et al. 1984, with the later judge where theirs takes the smaller).
        """
        lowest = self.state.lowest
        if lowest is not None and better(np.array(lowest), objective):
            return False
        if lowest is None or objective.mean() < np.mean(lowest):
            self.state.lowest = objective.tolist()
        self.save()
        return True

    def save(self) -> None:
        """Write the judge as it is now, in place of the one before. All ranks call it."""
        with fail_together():
            self.judge.save(self.folder, gathered=self.recipe.engine.zero_stage < 3, write=self.rank == 0)

    def checkpoint_is_due(self) -> bool:
        """Whether `engine.checkpoint_minutes` have passed, by the first rank's clock."""
        passed = time.monotonic() - self.checkpointed > 60 * self.recipe.engine.checkpoint_minutes
        return bool(from_first(int(passed)))

    def checkpoint(self) -> None:
        """Save all that a resumed run needs."""
        save_checkpoint(self.engine, self.folder / "checkpoints", self.state, self.total_steps)
        with fail_together():
            if self.rank == 0:
                write_history(self.folder / "history.parquet", self.state.history)
        self.checkpointed = time.monotonic()


def rate_factor(step: int, total: int, optimizer: OptimizerConfig) -> float:
    """The share of the peak learning rate at `step` of `total`.

    Linear over the warm-up, then the decay: cosine or linear to `min_lr_ratio`, or constant.
    """
    rising = max(1, round(optimizer.warmup * total if optimizer.warmup < 1 else optimizer.warmup))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[optimizer.decay]
    return optimizer.min_lr_ratio + (1 - optimizer.min_lr_ratio) * left


def write_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """The training curve as parquet, replaced atomically."""
    partial = path.with_name(f".{path.name}.partial")
    pl.DataFrame(history, schema=HISTORY).write_parquet(partial)
    partial.replace(path)
