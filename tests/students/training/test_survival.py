"""A training run that is killed, asked to stop or fed nonsense loses nothing, and resumes as if nothing had been."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from core.pointwise import JUDGE, KEY
from core.tables import read_parquet
from distill import prepare, student
from distill.config import Config
from distill.training_run import run_folder
from students.training.checkpoints import LATEST
from students.training.loop import HISTORY, Trainer
from tests.composing import configured
from tests.running import own_process

pytestmark = pytest.mark.timeout(300)
STEPS = 20
POINTWISE = ("model.kind=pointwise", "prompt=pointwise", "prompt.max_tokens=128")
Configure = Callable[..., Config]
COLUMNS = [name for name in HISTORY if name != "seconds"]


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Configure:
    root = tmp_path_factory.mktemp("artifacts") / "root[1]"  # DeepSpeed takes a folder's name for a pattern
    base = ["+exp=smoke", f"paths.root='{root}'", f"model.base={tiny_llama}", "model.layers=null", "loss=votes"]
    base += ["train.epochs=4", "train.validate_every=7", "engine.checkpoint_minutes=0"]
    prepare.main(configured(*base, "data.test_share=0"))

    def build(run: str, *overrides: str) -> Config:
        return replace(configured(*base, *overrides), run=run)

    return build


@pytest.fixture(scope="module")
def straight(configure: Configure) -> Config:
    config = configure("straight")
    student.main(config)
    assert len(history(config)) == STEPS
    return config


def history(config: Config) -> pl.DataFrame:
    return read_parquet(run_folder(config) / "history.parquet").select(COLUMNS)


def adapter(config: Config) -> dict[str, torch.Tensor]:
    folder = run_folder(config) / "adapter"
    learnt = json.loads((folder / JUDGE).read_text())[KEY] if (folder / JUDGE).exists() else {}
    return load_file(folder / "adapter_model.safetensors") | {n: torch.tensor(value) for n, value in learnt.items()}


def latest(config: Config) -> str:
    path = run_folder(config) / "checkpoints" / LATEST
    return path.read_text() if path.exists() else ""


def after_a_step(process: BaseProcess, config: Config) -> None:
    before = latest(config)
    while process.is_alive() and latest(config) == before:
        time.sleep(0.001)


@pytest.fixture(scope="module")
def straight_pointwise(configure: Configure) -> Config:
    config = configure("straight-pointwise", *POINTWISE)
    student.main(config)
    return config


@pytest.mark.parametrize(
    ("times", "kind"),
    [
        (3, "straight"),
        pytest.param(10, "straight", marks=pytest.mark.long),
        pytest.param(3, "straight_pointwise", marks=pytest.mark.long),
    ],
)
def test_killed_at_random_moments_it_equals_a_straight_run_bit_for_bit(
    configure: Configure, times: int, kind: str, request: pytest.FixtureRequest
) -> None:
    straight = request.getfixturevalue(kind)
    config = configure(f"killed{times}-{kind}", *(POINTWISE if straight.model.kind == "pointwise" else ()))
    rng = random.Random(0)
    for kill in range(times):
        process = own_process(student.main, config)
        if kill % 3:  # in between also while it starts
            after_a_step(process, config)
        time.sleep(rng.uniform(0, 0.05))
        assert process.is_alive(), f"it was finished after {kill} kills"
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    student.main(config)
    assert history(config).equals(history(straight))
    assert all(torch.equal(tensor, adapter(straight)[name]) for name, tensor in adapter(config).items())
    assert len(list((run_folder(config) / "checkpoints").glob("step-*"))) == 1


def test_sigterm_saves_and_exits(configure: Configure, straight: Config) -> None:
    config = configure("stopped", "engine.checkpoint_minutes=1000")
    process = own_process(student.main, config)
    after_a_step(process, config)  # the checkpoint after the first validation
    saved = latest(config)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM and latest(config) != saved
    assert STEPS // 4 < len(history(config)) < STEPS
    student.main(config)
    assert history(config).equals(history(straight))


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_with_the_conversations(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Trainer.forward

    def poisoned(self: Trainer, rows: list[tuple[int, int]]) -> torch.Tensor:
        terms = forward(self, rows)
        return terms * float("nan") if self.state.step == 3 else terms

    monkeypatch.setattr(Trainer, "forward", poisoned)
    config = configure("poisoned")
    with pytest.raises(ValueError, match=r"loss is nan at step 4 on conversations \['\w+.*lower optimizer.lr"):
        student.main(config)
    monkeypatch.undo()
    student.main(config)  # the checkpoint before it is good
    assert len(history(config)) == STEPS
