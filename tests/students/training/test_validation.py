"""Checkpoints are chosen by the training's objective on validation rows, and never by its noise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.training_run import recipe
from students.training.checkpoints import LATEST
from students.training.collectives import process_group
from students.training.data import collate
from students.training.loop import Trainer
from students.training.losses import Objective
from students.training.model import build_judge
from students.training.outcome import finished_metrics
from students.training.tracking import Tracker
from students.training.validation import better, objective_by_group, standard_error
from tests.composing import configured
from tests.grids import grid
from tests.students.training.single_steps import make_conversations, partition_all

pytestmark = pytest.mark.timeout(300)
STAGES = (0, 1, 2, 3)
EIGHT = make_conversations(8)
LOSS = ("loss.cosine.weight=0.3", "loss.kl.temperature=3")


def trainer_of(base: Path, folder: Path, *overrides: str) -> Trainer:
    """Two epochs of two steps, a validation and a checkpoint after each; within a process group."""
    config = configured("+exp=smoke", "model.layers=null", "train.batch_conversations=4", "train.epochs=2", *overrides)
    judge = build_judge(base, config.model, config.engine, config.seed)
    with pytest.MonkeyPatch.context() as patch:
        partition_all(patch)
        return Trainer(recipe(config), judge, EIGHT, EIGHT, folder, Tracker())


def test_the_objective_is_the_loss_of_the_training() -> None:
    examples = make_conversations(40)
    goal, logits = Objective(configured(*LOSS).loss), torch.randn(40, 2, 3, dtype=torch.float64)
    batch = collate([(i, order) for i in range(40) for order in (0, 1)], examples, torch.device("cpu"))
    voted, taught = (2 * sum(getattr(e, name) for e in examples) for name in ("vote_weight", "teacher_weight"))
    expected = goal.weights @ (goal.sums(logits.flatten(0, 1), batch) / goal.normalisers(voted, taught))
    assert objective_by_group(goal, logits, examples).mean() == pytest.approx(expected.item())


def test_the_standard_error_is_that_of_leaving_prompts_out() -> None:
    """The jackknife over groups: rows of a prompt go together, and with them what a term is divided by."""
    goal, examples = Objective(configured(*LOSS).loss), make_conversations(45)
    examples = [replace(e, group=str(i // 3 if i < 24 else i)) for i, e in enumerate(examples)]
    first = torch.randn(45, 2, 3, dtype=torch.float64)
    both = first, first + 0.3 * torch.randn(45, 2, 3, dtype=torch.float64)
    found = [objective_by_group(goal, logits, examples) for logits in both]
    left_out = []
    for group in {e.group for e in examples}:
        rows = [i for i, e in enumerate(examples) if e.group != group]
        left_out.append([objective_by_group(goal, x[rows], [examples[i] for i in rows]).mean() for x in both])
    a, b = np.array(left_out).T
    error, of_difference = (np.sqrt(len(values) - 1) * values.std() for values in (a, b - a))
    assert standard_error(found[0]) == pytest.approx(error, rel=0.1)
    assert standard_error(found[1] - found[0]) == pytest.approx(of_difference, rel=0.1)
    assert of_difference < error / 2


def test_an_earlier_judge_wins_only_beyond_the_error_of_the_difference(tiny_llama: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(1.0, 1.0, 100)  # as noisy as votes
    noise = rng.normal(0.0, 0.1, 100)
    noise += 0.005 - noise.mean()  # half a standard error of the difference
    assert better(rows - 0.1 + noise, rows) and not better(rows, rows + noise) and not better(rows[:1], rows[:1] + 9)
    with process_group():
        trainer = trainer_of(tiny_llama, tmp_path)
        assert [trainer.keep_best(objective) for objective in (rows, rows + noise)] == [True, True]
        assert not trainer.keep_best(rows + noise + 0.01)  # a slow rise is measured from its bottom
        assert trainer.keep_best(rows - 0.1 - noise) and not trainer.keep_best(rows)


@pytest.mark.parametrize("stage", grid(STAGES, short=[3]))
def test_a_gradient_that_is_not_finite_stops_before_anything_is_saved(
    stage: int, tiny_llama: Path, tmp_path: Path
) -> None:
    """Without ZeRO it made all weights NaN; with it the step was left out without a word."""
    with process_group():
        trainer = trainer_of(tiny_llama, tmp_path, f"engine=zero{stage}")
        overflows = iter([False] * 2 + [True] * 9)
        weights, _ = trainer.judge.trainable()
        weights[0].register_hook(lambda gradient: gradient * float("inf") if next(overflows) else gradient)
        with pytest.raises(
            ValueError, match=r"gradient norm is (inf|nan) at step 3 on conversations \['\d'.*lower opt"
        ):
            trainer.train()
        assert json.loads((tmp_path / "checkpoints" / LATEST).read_text())["tag"] == "step-2"
        whole = trainer_of(tiny_llama, tmp_path, f"engine=zero{stage}").train()  # from the checkpoint before it
    assert whole.step == 4 and np.isfinite([r["grad_norm"] for r in whole.history]).all()


def test_a_validation_that_is_not_finite_stops_before_anything_is_saved(tiny_llama: Path, tmp_path: Path) -> None:
    """It was the best for ever: no number is below NaN, and none is not."""
    with process_group():
        trainer = trainer_of(tiny_llama, tmp_path)
        take_step = trainer.take_step

        def spoilt(step: list[int], epoch: int) -> dict[str, Any]:
            record = take_step(step, epoch)
            if trainer.state.step == 4:
                trainer.judge.trainable()[1][0].data.fill_(float("nan"))
            return record

        trainer.take_step = spoilt  # type: ignore[method-assign]
        with pytest.raises(ValueError, match=r"validation loss is nan at step 4 on conversations \['0', '1', .*"):
            trainer.train()
    assert json.loads((tmp_path / "checkpoints" / LATEST).read_text())["tag"] == "step-2"
    assert trainer.state.kept["step"] == 2


def test_trained_parameters_are_counted_whole_under_zero3(tiny_llama: Path, tmp_path: Path) -> None:
    counts = []
    with process_group():
        for stage in (2, 3):
            trainer = trainer_of(tiny_llama, tmp_path / str(stage), f"engine=zero{stage}")
            trainer.state.history = [
                trainer.take_step([0], 0) | trainer.validate().record() | {"validation_kept": True}
            ]
            counts.append(finished_metrics(trainer.judge, trainer.state, 1, 1)["trainable_parameters"])
    assert counts[0] == counts[1] != 0


def test_the_optimiser_takes_its_epsilon(tiny_llama: Path, tmp_path: Path) -> None:
    with process_group():
        trainer = trainer_of(tiny_llama, tmp_path, "optimizer.eps=1e-5")
    assert all(group["eps"] == 1e-5 for group in trainer.engine.optimizer.param_groups)
