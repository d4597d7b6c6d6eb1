"""What other frameworks got silently wrong with LoRA and resuming, planted here and told apart.

| plant              | the bug, and who reported it                                                              |
|--------------------|-------------------------------------------------------------------------------------------|
| weights_forgotten  | a resumed run begins with new matrices, its checkpoint's fit no name: peft #746 #1395 #1453, |
|                    | transformers #29015, ms-swift #1207, LLaMA-Factory #2466                                  |
| moments_forgotten  | ... with an optimiser that knows nothing                                                  |
| schedule_forgotten | ... with the warm-up again                                                                |
| position_forgotten | ... with rows that this epoch has had                                                     |
| dropout_forgotten  | ... with other random numbers                                                             |
| lora_untrained     | lora_B stays zero while the loss falls: peft #1402                                        |
| head_untrained     | LoRA learns under a random head: OpenRLHF #873                                            |

Runs killed at any moment: test_survival.py.
"""

import shutil
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from students.training import loop
from students.training.loop import Trainer
from students.training.model import build_judge
from tests.composing import configured
from tests.grids import grid
from tests.students.training.short_runs import STEPS, Run, train
from tests.students.training.single_steps import HEAD, Plant, assert_saved, saved_adapter, trained_values

pytestmark = pytest.mark.timeout(300)
STAGES = (0, 1, 3)  # test_training.py has stage 2
DIES_IN = 4  # two epochs of two steps: in the middle of the second


class Runs(dict[int, tuple[Run, Path]]):
    """By ZeRO stage, once it is asked for: a straight run, and the folder of one that died in its last step."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder

    def __missing__(self, stage: int) -> tuple[Run, Path]:
        folder = self.folder / str(stage)
        with pytest.raises(KeyboardInterrupt):
            train(self.base, stage, folder / "dead", DIES_IN)
        self[stage] = train(self.base, stage, folder / "straight"), folder
        return self[stage]


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tiny_llama, tmp_path_factory.mktemp("runs"))


def assert_same_run(found: Run, expected: Run) -> None:
    """Bit for bit."""
    assert found.curve == expected.curve
    assert_saved(found.values, expected.values)


def weights_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DeepSpeedEngine, "load_module_state_dict", lambda *_, **__: None)


def moments_forgotten(patch: pytest.MonkeyPatch) -> None:
    load = DeepSpeedEngine.load_checkpoint
    patch.setattr(DeepSpeedEngine, "load_checkpoint", lambda *a, **k: load(*a, **k, load_optimizer_states=False))


def schedule_forgotten(patch: pytest.MonkeyPatch) -> None:
    set_rates = Trainer.set_rates
    patch.setattr(Trainer, "set_rates", lambda self, step: set_rates(self, step - DIES_IN + 1))


def position_forgotten(patch: pytest.MonkeyPatch) -> None:
    plan = loop.plan_epoch
    patch.setattr(loop, "plan_epoch", lambda *a: list(reversed(plan(*a))))


def dropout_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "manual_seed", lambda _: None)


@pytest.mark.parametrize("stage", grid(STAGES, short=[0, 3]))
@pytest.mark.long
def test_a_resumed_run_equals_the_straight_one(stage: int, runs: Runs, tiny_llama: Path, tmp_path: Path) -> None:
    straight, folder = runs[stage]
    resumed = train(tiny_llama, stage, shutil.copytree(folder / "dead", tmp_path / "run"))
    assert len(resumed.curve) == STEPS
    assert_same_run(resumed, straight)
    assert_saved(saved_adapter(tmp_path / "run"), straight.values)


@pytest.mark.parametrize(
    "plant", [weights_forgotten, moments_forgotten, schedule_forgotten, position_forgotten, dropout_forgotten]
)
def test_what_a_resumed_run_forgets_is_seen(
    plant: Plant, runs: Runs, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, folder = runs[0]
    plant(monkeypatch)
    resumed = train(tiny_llama, 0, shutil.copytree(folder / "dead", tmp_path / "run"))
    with pytest.raises(AssertionError):
        assert_same_run(resumed, straight)


def assert_all_trained(run: Run, base: Path) -> None:
    """LoRA's B, which starts at zero, and the head, as drawn for this seed, have both moved in every element."""
    config = configured("+exp=smoke", "model.layers=null")
    drawn = build_judge(base, config.model, config.engine, config.seed)
    start = trained_values(drawn, partitioned=False)
    assert all((run.values[name] != start[name]).all() for name in start if "lora_B" in name or name == HEAD)
    assert {name.rsplit(".", 2)[1] for name in start} == {"lora_A", "lora_B", "score"}


def slowed(patch: pytest.MonkeyPatch, group: int) -> None:
    set_rates = Trainer.set_rates

    def without(self: Trainer, step: int) -> None:
        set_rates(self, step)
        self.engine.optimizer.param_groups[group]["lr"] = 0.0

    patch.setattr(Trainer, "set_rates", without)


def lora_untrained(patch: pytest.MonkeyPatch) -> None:
    slowed(patch, 0)


def head_untrained(patch: pytest.MonkeyPatch) -> None:
    slowed(patch, 1)


@pytest.mark.parametrize("stage", grid(STAGES, short=[0, 3]))
def test_lora_and_head_are_both_trained(stage: int, runs: Runs, tiny_llama: Path) -> None:
    assert_all_trained(runs[stage][0], tiny_llama)


@pytest.mark.parametrize("plant", [lora_untrained, head_untrained])
def test_what_stays_untrained_is_seen(
    plant: Plant, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    run = train(tiny_llama, 0, tmp_path)
    with pytest.raises(AssertionError):
        assert_all_trained(run, tiny_llama)
