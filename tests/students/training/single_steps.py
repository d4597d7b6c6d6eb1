"""One optimiser step of the real trainer beside the same step by definition: losses and every gradient.

Trained with plain SGD at rate 1, a parameter moves by its gradient, whatever DeepSpeed partitions or averages.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from core.config import from_mapping
from core.labels import NO_TIE
from core.records import swap_labels
from distill.config import Config
from distill.training_run import recipe
from students.training.data import Example
from students.training.model import JudgeModel, build_judge
from students.training.pairing import PACE, LearntChoice
from students.training.steps import BatchRow, micro_batches
from students.training.tracking import Tracker
from tests.composing import plain
from tests.running import free_port, own_process

if TYPE_CHECKING:
    from students.training.loop import Trainer

CE, KL, TEMPERATURE = 0.3, 0.7, 3.0
STEP = [
    *("+exp=smoke", "model.layers=null", "model.lora.dropout=0", "engine=zero0"),
    *(f"loss.cross_entropy.weight={CE}", f"loss.kl.weight={KL}", f"loss.kl.temperature={TEMPERATURE}"),
    *("optimizer.lr=1", "optimizer.head_lr=1", "optimizer.clip=0", "optimizer.warmup=0", "optimizer.decay=constant"),
]
ONE_BATCH, ONE_EACH = "engine.micro_batch_tokens=100000", "engine.micro_batch_tokens=1"
WEIGHTS = ("vote_weight", "teacher_weight")
HEAD = "base_model.model.score.weight"
SPECIAL = (0, 1, 2)  # <|bos|> (also the id of our pads), <|eos|> and <|pad|> stand in the middle of texts, too
Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Step:
    """What a step reports, and by parameter name its gradients, the new values and those that were saved."""

    losses: dict[str, float]
    gradients: dict[str, torch.Tensor]
    reported_norm: float | None = None
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    saved: dict[str, torch.Tensor] = field(default_factory=dict)


def step_config(base: Path, *overrides: str) -> Config:
    config = from_mapping(Config, {**plain(*STEP, *overrides), "run": "step"})
    return replace(config, model=replace(config.model, base=str(base)))


def make_conversations(count: int, seed: int = 0) -> list[Example]:
    """Conversations of 9 to 80 tokens, longer than tiny Gemma's window of 64; weights and missing votes are unequal."""
    rng = torch.Generator().manual_seed(seed)

    def text(tokens: int) -> list[int]:
        ids = torch.randint(3, 600, (tokens,), generator=rng)
        ids[torch.randint(2, tokens - 1, (len(SPECIAL),), generator=rng)] = torch.tensor(SPECIAL)
        return ids.tolist()

    def triple(values: torch.Tensor) -> tuple[float, float, float]:
        a, b, tie = values.tolist()
        return a, b, tie

    lengths = torch.linspace(9, 80, count).int().tolist()
    return [
        Example(
            id=str(i),
            ids=(text(length), text(max(6, length - 3))),
            votes=None if i % 3 == 2 else triple(torch.randn(3, generator=rng).softmax(-1)),
            teacher=triple(3 * torch.randn(3, generator=rng)),
            vote_weight=0.0 if i % 3 == 2 else 1.0 + i % 2,
            teacher_weight=0.25 + 0.25 * (i % 4),
            group=str(i),
        )
        for i, length in enumerate(lengths)
    ]


def with_small_cap(gemma2: Path, folder: Path) -> Path:
    """Gemma-2 with a softcap that matters: at the published 50, a tiny model's attention scores hardly feel it."""
    shutil.copytree(gemma2, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_logit_softcapping": 0.5}))
    return folder


def make_judge(config: Config) -> JudgeModel:
    """A judge whose LoRA factors are both away from zero, so that all gradients are."""
    judge = build_judge(Path(str(config.model.base)), config.model, config.engine, config.seed)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in judge.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
            if "choice" in name:
                parameter.fill_(0.3 / PACE if "height" in name else 0.3)
    return judge


def by_definition(config: Config, conversations: Sequence[Example]) -> Step:
    """The step without batches, engine or code of ours: each row alone through transformers' classifier, in eager."""
    judge = make_judge(config)
    classifier = judge.classifier
    classifier.set_attn_implementation("eager")
    classifier.config.pad_token_id = -1  # its own pooling looks for pads: here no id is one
    voted, taught = (2 * sum(getattr(c, name) for c in conversations) for name in WEIGHTS)
    sums = dict.fromkeys(("cross_entropy", "kl"), torch.zeros(()))
    for c in conversations:
        outputs = [classifier(input_ids=torch.tensor([ids])).logits[0] for ids in c.ids]
        for order, logits in enumerate(outputs if judge.choice is None else from_rewards(judge.choice, *outputs)):
            votes, teacher = (
                torch.tensor(v if order == 0 else swap_labels(v)) for v in (c.votes or (0.0,) * 3, c.teacher or ())
            )
            softened = (logits / TEMPERATURE).log_softmax(-1), (teacher / TEMPERATURE).softmax(-1)
            divergence = TEMPERATURE**2 * functional.kl_div(*softened, reduction="sum")
            sums["cross_entropy"] = sums["cross_entropy"] + c.vote_weight * functional.cross_entropy(logits, votes)
            sums["kl"] = sums["kl"] + c.teacher_weight * divergence
    terms = {"cross_entropy": sums["cross_entropy"] / voted, "kl": sums["kl"] / taught}
    loss = CE * terms["cross_entropy"] + KL * terms["kl"]
    loss.backward()
    return Step(
        {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}},
        {name_in_file(n): p.grad for n, p in judge.named_parameters() if p.grad is not None},
    )


def from_rewards(choice: LearntChoice, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
    """A pair's logits in either order, by definition."""
    a, b = choice.log_scale.exp() * first, choice.log_scale.exp() * second
    mean = (a + b) / 2
    tie = torch.tensor([NO_TIE]) + mean
    if choice.log_tie is not None and choice.height is not None:
        tie = choice.log_tie + (1 - PACE * choice.height) * mean
    return [torch.cat([a, b, tie]), torch.cat([b, a, tie])]


def take_step(config: Config, conversations: Sequence[Example], folder: Path, save: bool = False) -> Step:
    """The step as our trainer takes it, within a process group; on all ranks. `save`: and keeps it as the best."""
    from students.training.loop import Trainer

    judge = make_judge(config)
    before = trained_values(judge, partitioned=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "students.training.engine.open_optimizer", lambda judge, *_: torch.optim.SGD(_groups(judge), lr=1.0)
        )
        partition_all(patch)
        trainer = Trainer(recipe(config), judge, list(conversations), [], folder, Tracker())
    record = trainer.take_step(list(range(len(conversations))), 0)
    after = trained_values(judge, config.engine.zero_stage == 3)
    if save:
        trainer.save()
    return Step(
        losses={name: record[name] for name in ("loss", "cross_entropy", "kl")},
        gradients={name: before[name] - value for name, value in after.items()},
        reported_norm=record["grad_norm"],
        values=after,
        saved=saved_adapter(folder) if save and trainer.rank == 0 else {},
    )


def trained_values(judge: JudgeModel, partitioned: bool) -> dict[str, torch.Tensor]:
    """Copies of what is trained, by PEFT's names in a file; on all ranks where ZeRO-3 has `partitioned` it."""
    from deepspeed import zero

    trained = {name: p for name, p in judge.named_parameters() if p.requires_grad}
    with zero.GatheredParameters(list(trained.values())) if partitioned else contextlib.nullcontext():
        return {name_in_file(name): p.detach().clone() for name, p in trained.items()}


def name_in_file(name: str) -> str:
    return name.removeprefix("model.").replace(".default", "").replace(".modules_to_save", "")


def saved_adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_saved(saved: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    assert saved.keys() == values.keys()
    assert all(torch.equal(saved[name], value) for name, value in values.items())


def partition_all(patch: pytest.MonkeyPatch) -> None:
    """Have ZeRO-3 partition all: it keeps parameters of up to 100000 elements whole, and a tiny model has no others."""
    import deepspeed

    initialize = deepspeed.initialize

    def partitioning(*, config: dict[str, Any], **others: Any) -> Any:
        zero = {**config["zero_optimization"], "stage3_param_persistence_threshold": 0}
        return initialize(config={**config, "zero_optimization": zero}, **others)

    patch.setattr(deepspeed, "initialize", partitioning)


def _groups(judge: JudgeModel) -> list[dict[str, Any]]:
    return [{"params": part} for part in judge.trainable()]


def assert_same_step(found: Step, expected: Step) -> None:
    """Losses to 1e-5, and the gradients."""
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert_same_gradients(found, expected)


def assert_same_gradients(found: Step, expected: Step) -> None:
    """Every gradient to 1e-4 of its size."""
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        error, size = (found.gradients[name] - gradient).norm(), gradient.norm()
        assert size > 0 and error < 1e-4 * size, f"{name}: gradient of norm {size:.3g} is off by {error:.3g}"


def everything(trainer: "Trainer") -> list[BatchRow]:
    """All rows of a step over all training conversations."""
    return [(i, order) for i in range(len(trainer.training)) for order in (0, 1)]


def own_pieces(trainer: "Trainer") -> list[list[BatchRow]]:
    """The micro-batches of this rank in such a step."""
    budget = trainer.recipe.engine.micro_batch_tokens
    return micro_batches(range(len(trainer.training)), trainer.lengths, trainer.world, budget)[trainer.rank]


def counted(trainer: "Trainer", rows: Sequence[BatchRow]) -> torch.Tensor:
    """[terms] what the sums would be divided by if `rows` were all."""
    voted, taught = (sum(getattr(trainer.training[i], name) for i, _ in rows) for name in WEIGHTS)
    return trainer.objective.normalisers(voted, taught)


def rescale(patch: pytest.MonkeyPatch, factor: Callable[["Trainer", list[BatchRow]], Any]) -> None:
    """Plant a factor [terms] on the sums of each micro-batch."""
    from students.training.loop import Trainer

    forward = Trainer.forward
    patch.setattr(Trainer, "forward", lambda self, rows: forward(self, rows) * factor(self, rows))


@dataclass(frozen=True)
class Case:
    """One step that several ranks take together, with a bug planted or none."""

    config: Config
    conversations: list[Example]
    plant: Plant | None = None


def take_steps_on(ranks: int, cases: Mapping[str, Case], folder: Path) -> Iterator[tuple[str, Step]]:
    """Take the steps of all `cases` on as many processes: imports, which take longest, are paid once."""
    port = free_port()
    processes = [own_process(_as_rank, rank, ranks, port, cases, folder) for rank in range(ranks)]
    try:
        for process in processes:
            process.join(240)
            assert process.exitcode == 0, f"a rank ended with {process.exitcode}"
    finally:
        for process in processes:
            process.kill()
    for name in cases:
        yield name, torch.load(folder / name, weights_only=False)


def _as_rank(rank: int, ranks: int, port: int, cases: Mapping[str, Case], folder: Path) -> None:
    from students.training.collectives import process_group

    who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in who.items()}
    torch.set_num_threads(1)
    with process_group():
        for name, case in cases.items():
            with pytest.MonkeyPatch.context() as patch:
                if case.plant:
                    case.plant(patch)
                step = take_step(case.config, case.conversations, folder / f"run-{name}", save=True)
            if rank == 0:
                torch.save(step, folder / name)
