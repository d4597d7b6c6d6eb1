"""The sides of bench.student: ways to train a judge, each in a process of its own that waits for its turns."""

import ctypes
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.processes import peak_bytes
from core.records import LABELS, swap_labels
from distill.config import Config
from distill.training_run import recipe

if TYPE_CHECKING:
    from students.training.data import Example

ROWS = 8  # of one optimiser step


@dataclass(frozen=True)
class Task:
    """What every side trains. `pairs`: TRL's rows, `chosen` and `rejected` messages; `alone` and `responses`: what a
    pointwise judge has for `config` and `examples`.
    """

    config: Config
    base: Path
    examples: list["Example"]
    pairs: list[dict[str, Any]]
    threads: int
    alone: Config
    responses: list["Example"]


@dataclass(frozen=True)
class Turn:
    """What a side did in one turn: tokens without and with pads; of the wall and of the processor the seconds."""

    tokens: int
    padded: int
    seconds: float
    busy_s: float
    peak_mb: float


class Finished(Exception):
    """There are no more turns."""


class Turns:
    """The turns of one side, in its own process: `step_done` returns when the next step may begin."""

    def __init__(self, pipe: Connection, steps: int):
        self.pipe, self.steps = pipe, steps
        self._begin(1)  # to warm up

    def _begin(self, steps: int) -> None:
        self.left, self.tokens, self.padded = steps, 0, 0
        self.began, self.busy = time.perf_counter(), time.process_time()

    def step_done(self, tokens: int, padded: int) -> None:
        """Count an optimiser step over so many tokens; raises `Finished` after the last turn."""
        self.left, self.tokens, self.padded = self.left - 1, self.tokens + tokens, self.padded + padded
        if self.left:
            return
        seconds, busy = time.perf_counter() - self.began, time.process_time() - self.busy
        self.pipe.send(Turn(self.tokens, self.padded, seconds, busy, peak_bytes() / 1e6))
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system: all sides share the machine's memory
        if not self.pipe.recv():
            raise Finished
        self._begin(self.steps)


def run_side(name: str, task: Task, pipe: Connection, steps: int) -> None:
    """One side's process."""
    import torch
    from transformers import logging

    torch.set_num_threads(task.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # A pipe that ends is the end of the bench, which was stopped.
    with suppress(Finished, EOFError, BrokenPipeError), tempfile.TemporaryDirectory() as folder:
        SIDES[name](task, Turns(pipe, steps), Path(folder))


def ours(task: Task, turns: Turns, folder: Path) -> None:
    """The student stage's own training, its engine as `conf/` has it."""
    train(task, task.config, task.examples, turns, folder)


def pointwise(task: Task, turns: Turns, folder: Path) -> None:
    """The same of a pointwise judge."""
    train(task, task.alone, task.responses, turns, folder)


def train(task: Task, config: Config, examples: list["Example"], turns: Turns, folder: Path) -> None:
    """Our training of `examples`."""
    from students.training.collectives import process_group
    from students.training.loop import Trainer
    from students.training.model import build_judge
    from students.training.tracking import Tracker

    class Timer(Tracker):
        def log(self, record: Any) -> None:
            turns.step_done(record["tokens"], round(record["tokens"] / (1 - record["padding"])))

    with process_group():
        judge = build_judge(task.base, config.model, config.engine, config.seed)
        Trainer(recipe(config), judge, examples, examples[:1], folder, Timer()).train()


def bare(task: Task, turns: Turns, folder: Path) -> None:
    """The same module and micro-batches, and nothing else that is ours."""
    import torch
    from torch.nn import functional

    from students.training.data import collate
    from students.training.model import build_judge

    config = task.config
    judge = build_judge(task.base, config.model, config.engine, config.seed).train()
    trained = [p for part in judge.trainable() for p in part]
    first, second = config.optimizer.betas
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, betas=(first, second), weight_decay=0.0)
    steps = [[collate(rows, task.examples, torch.device("cpu")) for rows in step] for step in epoch_plan(task)]
    for batches in steps:
        for batch in batches:
            logits = judge(batch.input_ids, None, batch.ends)
            (functional.cross_entropy(logits, batch.votes, reduction="sum") / ROWS).backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        sizes = [(batch.ends, batch.input_ids) for batch in batches if isinstance(batch.input_ids, torch.Tensor)]
        tokens = sum(int((ends % ids.shape[1] + 1).sum()) for ends, ids in sizes)
        turns.step_done(tokens, sum(ids.numel() for _, ids in sizes))


def trainer(task: Task, turns: Turns, folder: Path) -> None:
    """transformers' Trainer as its documentation has it: random order, dynamic padding."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(task.base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [
        {"input_ids": ids, "labels": max(range(len(LABELS)), key=shown.__getitem__)}
        for example in task.examples
        if example.votes
        for ids, shown in zip(example.ids, (example.votes, swap_labels(example.votes)), strict=True)
    ]
    Trainer(
        classifier(task, len(LABELS), tokenizer.pad_token_id),
        TrainingArguments(**arguments(task, folder), per_device_train_batch_size=ROWS),
        DataCollatorWithPadding(tokenizer),
        rows,
        callbacks=[step_callback(turns)],
    ).train()


def trl(task: Task, turns: Turns, folder: Path) -> None:
    """TRL's RewardTrainer; it tokenises, leaves out what is longer than the budget, and draws in random order."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(task.base)
    settings = RewardConfig(
        **arguments(task, folder),
        per_device_train_batch_size=ROWS // 2,
        max_length=task.config.prompt.max_tokens,
        gradient_checkpointing=False,
        bf16=False,
    )
    RewardTrainer(
        classifier(task, 1, tokenizer.pad_token_id or tokenizer.eos_token_id),
        settings,
        train_dataset=Dataset.from_list(task.pairs),
        processing_class=tokenizer,
        callbacks=[step_callback(turns)],
    ).train()


def arguments(task: Task, folder: Path) -> dict[str, Any]:
    """The settings of both other trainers; the rest are their defaults."""
    first, second = task.config.optimizer.betas
    return {
        "output_dir": str(folder),
        "num_train_epochs": 100,
        "learning_rate": task.config.optimizer.lr,
        "adam_beta1": first,
        "adam_beta2": second,
        "max_grad_norm": task.config.optimizer.clip,
        "seed": task.config.seed,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def classifier(task: Task, labels: int, pad: int) -> Any:
    """transformers' sequence classifier with the student's LoRA."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from students.training.model import with_lora

    model = AutoModelForSequenceClassification.from_pretrained(
        task.base, num_labels=labels, pad_token_id=pad, dtype=torch.float32
    )
    return with_lora(model, task.config.model)


def step_callback(turns: Turns) -> Any:
    """A callback for transformers' trainers that counts what the model is shown and takes turns after each step."""
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def on_train_begin(self, *_: Any, **named: Any) -> None:
            def count(module: Any, positional: Any, named: dict[str, Any]) -> None:
                self.tokens, self.padded = int(named["attention_mask"].sum()), named["attention_mask"].numel()

            named["model"].register_forward_pre_hook(count, with_kwargs=True)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step_done(self.tokens, self.padded)

    return Timer()


def epoch_plan(task: Task) -> list[list[Any]]:
    """The micro-batches [step][piece][row] that the student stage trains in its first epoch."""
    from students.training.data import prompt_numbers
    from students.training.steps import micro_batches, plan_epoch

    train, lengths = task.config.train, [example.length for example in task.examples]
    numbers = prompt_numbers(task.examples)
    steps = plan_epoch(lengths, train.batch_conversations, train.length_pool_steps, task.config.seed, 0, numbers)
    return [micro_batches(step, lengths, 1, task.config.engine.micro_batch_tokens, numbers)[0] for step in steps]


SIDES: dict[str, Callable[[Task, Turns, Path], None]] = {
    **{"trainer": trainer, "trl": trl},
    **{"bare": bare, "ours": ours, "pointwise": pointwise},
}
