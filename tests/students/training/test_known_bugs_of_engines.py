"""What other frameworks got silently wrong on several ranks and under DeepSpeed, planted here and told apart.

| plant                  | the bug, and who reported it                                                      |
|------------------------|-----------------------------------------------------------------------------------|
| counts_of_a_rank       | each rank divides by its own count, DDP's default: TRL #4719 #6478                 |
| dummy_row_counted      | a rank without rows adds its filler to the loss                                   |
| averaged_over_ranks    | a sum over the global count that the engine averages again                        |
| not_reduced            | gradients that never meet: TRL #5282                                              |
| wrapper_bypassed       | a forward beside the engine's: TRL #5934, ms-swift #10165, DistillKit by reading   |
| head_beside_the_engine | a partitioned weight outside its module: TRL #3097, axolotl by reading             |
| saved_in_partitions    | an empty adapter under ZeRO-3: peft #453 #2450 #2500, TRL #4416                    |

Two ranks are two processes, with unequal counts of rows, votes and micro-batches. The table of the loss's own bugs:
test_known_bugs.py.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch.nn import functional

from students.training import loop
from students.training.collectives import process_group
from students.training.data import Batch
from students.training.loop import Trainer
from students.training.model import JudgeModel
from students.training.steps import BatchRow
from tests.grids import grid
from tests.students.training.single_steps import (
    ONE_EACH,
    Case,
    Plant,
    Step,
    assert_same_gradients,
    assert_same_step,
    assert_saved,
    by_definition,
    counted,
    everything,
    make_conversations,
    own_pieces,
    rescale,
    step_config,
    take_step,
    take_steps_on,
)

pytestmark = pytest.mark.timeout(300)
STAGES = (0, 1, 2, 3)
THREE, ONE = make_conversations(3), make_conversations(1)  # on two ranks: two and one, one and none


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with process_group():
        yield


def counts_of_a_rank(patch: pytest.MonkeyPatch) -> None:
    def factor(trainer: Trainer, _: list[BatchRow]) -> torch.Tensor:
        own = [row for piece in own_pieces(trainer) for row in piece]
        return counted(trainer, everything(trainer)) / counted(trainer, own) / trainer.world

    rescale(patch, factor)


def dummy_row_counted(patch: pytest.MonkeyPatch) -> None:
    collate = loop.collate

    def counting(rows: list[BatchRow], *others: Any, **options: Any) -> Batch:
        batch = collate(rows, *others, **options)
        return batch if rows else replace(batch, vote_weights=torch.ones(1), teacher_weights=torch.ones(1))

    patch.setattr(loop, "collate", counting)


def averaged_over_ranks(patch: pytest.MonkeyPatch) -> None:
    backward = DeepSpeedEngine.backward
    patch.setattr(DeepSpeedEngine, "backward", lambda self, loss: backward(self, loss / self.world_size))


def not_reduced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DeepSpeedEngine, "allreduce_gradients", lambda *_, **__: None)


def saved_in_partitions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("students.training.model.whole", lambda _: nullcontext())


ON_RANKS = (counts_of_a_rank, dummy_row_counted, averaged_over_ranks, not_reduced)


@pytest.fixture(scope="module")
def two_ranks(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    zero = {stage: step_config(tiny_llama, ONE_EACH, f"engine=zero{stage}") for stage in STAGES}
    cases = {f"{stage}-3": Case(zero[stage], THREE) for stage in STAGES} | {"3-1": Case(zero[3], ONE)}
    cases |= {plant.__name__: Case(zero[0], THREE, plant) for plant in ON_RANKS}
    cases["saved_in_partitions"] = Case(zero[3], THREE, saved_in_partitions)
    return dict(take_steps_on(2, cases, tmp_path_factory.mktemp("two_ranks")))


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> dict[int, Step]:
    return {len(rows): by_definition(step_config(tiny_llama), rows) for rows in (THREE, ONE)}


@pytest.mark.parametrize(("stage", "rows"), [*((stage, 3) for stage in STAGES), (3, 1)])
def test_two_ranks_of_unequal_counts_take_the_step_of_one(
    stage: int, rows: int, two_ranks: dict[str, Step], expected: dict[int, Step]
) -> None:
    step = two_ranks[f"{stage}-{rows}"]
    assert_same_step(step, expected[rows])
    assert_saved(step.saved, step.values)


@pytest.mark.parametrize("plant", ON_RANKS)
def test_a_bug_planted_in_two_ranks_is_seen(
    plant: Plant, two_ranks: dict[str, Step], expected: dict[int, Step]
) -> None:
    with pytest.raises(AssertionError):
        assert_same_gradients(two_ranks[plant.__name__], expected[3])


def test_an_adapter_saved_in_partitions_is_seen(two_ranks: dict[str, Step], expected: dict[int, Step]) -> None:
    step = two_ranks["saved_in_partitions"]
    assert_same_step(step, expected[3])
    with pytest.raises(AssertionError):
        assert_saved(step.saved, step.values)


@pytest.mark.parametrize("budget", ["engine.micro_batch_tokens=100000", ONE_EACH])
@pytest.mark.parametrize("engine", grid(["zero1", "zero2", "zero3", "zero3_cpu"], short=["zero3"]))
def test_zero_takes_the_step_by_definition(
    engine: str, budget: str, tiny_llama: Path, expected: dict[int, Step], tmp_path: Path
) -> None:
    config = step_config(tiny_llama, f"engine={engine}", budget)
    assert_same_step(take_step(config, THREE, tmp_path), expected[3])


@pytest.mark.parametrize("engine", grid(["zero2", "zero3"], short=["zero3"]))
@pytest.mark.parametrize("tuning", grid(["model=full", "model.lora.method=dora"], short=["model=full"]))
def test_zero_takes_the_step_of_other_tunings(tuning: str, engine: str, tiny_gemma2: Path, tmp_path: Path) -> None:
    by_hand = by_definition(step_config(tiny_gemma2, tuning), THREE)
    assert_same_step(
        take_step(step_config(tiny_gemma2, tuning, ONE_EACH, f"engine={engine}"), THREE, tmp_path), by_hand
    )


@pytest.mark.parametrize("stage", grid(STAGES, short=[2]))
def test_the_global_norm_is_clipped_and_reported_as_it_was(
    stage: int, tiny_llama: Path, expected: dict[int, Step], tmp_path: Path
) -> None:
    config = step_config(tiny_llama, ONE_EACH, f"engine=zero{stage}", "optimizer.clip=0.5")
    step = take_step(config, THREE, tmp_path)
    assert norm(step) == pytest.approx(0.5, rel=1e-4)
    assert step.reported_norm == pytest.approx(norm(expected[3]), rel=1e-4)


def norm(step: Step) -> float:
    return torch.cat([gradient.flatten() for gradient in step.gradients.values()]).norm().item()


def wrapper_bypassed(patch: pytest.MonkeyPatch) -> None:
    def forward(self: Trainer, rows: list[BatchRow]) -> torch.Tensor:
        batch = loop.collate(rows, self.training, self.device)
        return self.objective.sums(self.judge(batch.input_ids, batch.positions, batch.ends), batch)

    patch.setattr(Trainer, "forward", forward)


def head_beside_the_engine(patch: pytest.MonkeyPatch) -> None:
    def forward(self: JudgeModel, input_ids: torch.Tensor, positions: torch.Tensor | None, ends: torch.Tensor) -> Any:
        hidden = self.classifier.model(input_ids=input_ids, position_ids=positions).last_hidden_state
        (head,) = self.trainable()[1]
        return functional.linear(hidden.flatten(0, 1)[ends], head)

    patch.setattr(JudgeModel, "forward", forward)


def test_a_forward_beside_the_engine_is_seen(
    tiny_llama: Path, expected: dict[int, Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper_bypassed(monkeypatch)
    step = take_step(step_config(tiny_llama, ONE_EACH, "engine=zero3"), THREE, tmp_path)
    with pytest.raises(AssertionError):
        assert_same_gradients(step, expected[3])


def test_a_partitioned_weight_outside_its_module_fails_aloud(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head_beside_the_engine(monkeypatch)
    with pytest.raises(RuntimeError, match="size mismatch"):
        take_step(step_config(tiny_llama, "engine=zero3"), THREE, tmp_path)
