"""Sweeps on tiny models: a search prunes what is bad, loses nothing to a kill, and is told by the runs' own files."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deepspeed.launcher.runner import fetch_hostfile
from hydra.core.global_hydra import GlobalHydra
from optuna import Study, load_study
from optuna.trial import TrialState

from core.artefacts.manifest import read_manifest
from core.exits import INTERRUPTED
from distill import prepare, student, sweeps
from distill.command_line import CONF
from distill.entry_point import entry_point
from distill.training_run import run_folder
from students.training.checkpoints import LATEST
from students.training.loop import Trainer
from students.training.optuna_studies import STUDY, Trial, open_journal, open_study, told_to_stop
from tests.composing import configured
from tests.grids import grid
from tests.running import ROOT, succeeds

pytestmark = pytest.mark.timeout(300)
STEPS = 9  # three epochs of three steps, a validation after each
GOOD, BAD = "optimizer.head_lr=0.004", "optimizer.head_lr=3.0"
SEED = 5  # draws: good, bad, good
Sweep = Callable[..., int]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> list[str]:
    """The overrides that all trainings share; their data are prepared."""
    root = tmp_path_factory.mktemp("artifacts")
    base = ["+exp=smoke", f"paths.root={root}", f"model.base={tiny_llama}", "model.layers=null", "loss=votes"]
    prepare.main(configured(*base, "data.test_share=0"))
    return [*base, "train.epochs=3", "train.batch_conversations=16"]


@pytest.fixture
def sweep(base: list[str], monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run `distill.student -m` in this process; the number of optimiser steps that were begun.

    With `dies_at` the process is killed at the beginning of that step, counted over all trials.
    """

    def run(*overrides: str, dies_at: int | None = None) -> int:
        begun, take_step = 0, Trainer.take_step

        def counted(self: Trainer, step: list[int], epoch: int) -> dict[str, object]:
            nonlocal begun
            begun += 1
            if begun == dies_at:
                raise KeyboardInterrupt
            return take_step(self, step, epoch)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "take_step", counted)
            patch.setattr(sys, "argv", ["distill.student", "-m", *base, *overrides])
            try:
                entry_point(student.main, student.READS)()
            except SystemExit as end:
                if end.code != INTERRUPTED:
                    raise
                assert begun == dies_at
            finally:
                GlobalHydra.instance().clear()
        return begun

    return run


def searching(name: str, *overrides: str, trials: int = 3) -> list[str]:
    settings = [f"n_trials={trials}", f"seed={SEED}", "pruner.n_startup_trials=1", "pruner.n_warmup_steps=0"]
    chosen = ["hydra/sweeper=optuna", *(f"hydra.sweeper.{setting}" for setting in settings)]
    return [f"name={name}", *chosen, *(overrides or ["optimizer.head_lr=choice(0.004,3.0)"])]


def study(base: list[str], name: str) -> Study:
    (folder,) = configured(*base).root.glob(f"sweeps/students/{name},*/fold=0")
    return load_study(study_name=STUDY, storage=open_journal(folder))


def told(base: list[str], name: str) -> list[tuple[list[str], TrialState, float | None]]:
    return [(trial.user_attrs["overrides"], trial.state, trial.value) for trial in study(base, name).trials]


def folder(base: list[str], name: str, *overrides: str) -> Path:
    return run_folder(configured(*base, f"name={name}", *overrides))


@pytest.fixture
def straight(sweep: Sweep, base: list[str]) -> str:
    """A search that nothing disturbed; done once, after that it finds itself finished."""
    sweep(*searching("straight"))
    return "straight"


@pytest.mark.long
def test_a_bad_trial_stops_early_and_is_not_taken_for_finished(sweep: Sweep, base: list[str]) -> None:
    assert sweep(*searching("pruning", trials=2)) == STEPS + STEPS // 3
    good, bad = folder(base, "pruning", GOOD), folder(base, "pruning", BAD)
    (first, done, value), (second, pruned, bad_value) = told(base, "pruning")
    assert ([first], [second]) == ([[GOOD]], [[BAD]])
    assert (
        done == TrialState.COMPLETE and value == json.loads((good / "metrics.json").read_text())["validation_log_loss"]
    )
    assert pruned == TrialState.PRUNED and bad_value is not None and value is not None and bad_value > value
    metrics = json.loads((bad / "metrics.json").read_text())
    assert metrics == {"pruned": True, "validation_log_loss": bad_value, "best_step": 3, "steps": 3}
    with pytest.raises(ValueError, match="is not finished"):
        read_manifest(bad, "student")
    student.main(configured(*base, "name=pruning", BAD))  # outside of the search it goes on to the end
    history = pl.read_parquet(bad / "history.parquet")
    assert read_manifest(bad, "student") and history["step"].to_list() == list(range(1, STEPS + 1))
    assert "pruned" not in json.loads((bad / "metrics.json").read_text())


@pytest.mark.parametrize(
    "pruner",
    [
        {"kind": "MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 1},
        {"kind": "HyperbandPruner", "min_resource": 1, "max_resource": 2, "reduction_factor": 3},
    ],
)
def test_a_pruner_spares_the_validations_that_it_promises_to(pruner: dict[str, Any], tmp_path: Path) -> None:
    searched = open_study(tmp_path, pruner, {})
    for number, values in enumerate(([0.9, 0.8, 0.7], [9.0, 9.0])):
        assert searched.ask().number == number
        trial = Trial(tmp_path, number)
        verdicts = [told_to_stop(trial, values[:seen]) for seen in range(1, len(values) + 1)]
        if number == 0:
            searched.tell(0, values[-1])
    assert verdicts == [False, True]


@pytest.mark.parametrize(
    "dies_at", grid([2, 6, STEPS + 2], short=[6])
)  # in the first trial, there after a checkpoint, in the second
def test_a_killed_search_goes_on_as_if_it_had_not_been(
    sweep: Sweep, base: list[str], straight: str, dies_at: int
) -> None:
    name = f"killed{dies_at}"
    sweep(*searching(name), dies_at=dies_at)
    sweep(*searching(name))
    assert told(base, name) == told(base, straight)
    assert sweep(*searching(name)) == 0  # nothing is trained twice


@pytest.mark.long
def test_more_trials_go_on_with_the_study(sweep: Sweep, base: list[str]) -> None:
    begun = [sweep(*searching("more", trials=trials)) for trials in (1, 2)]
    assert begun == [STEPS, STEPS // 3] and len(told(base, "more")) == 2
    with pytest.raises(SystemExit, match="2"):
        sweep(*searching("more", trials=3), "limit=30")


def test_a_study_of_other_trials_is_refused(
    sweep: Sweep, base: list[str], straight: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sweep(*searching(straight), "limit=30")
    assert re.search(r"is a study of other trials:\n  - limit: there None, now 30\n", capsys.readouterr().err)


def test_numbers_of_the_sweeper_have_bounds(sweep: Sweep, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sweep(*searching("nothing", trials=0), "hydra.sweeper.n_jobs=0")
    told = capsys.readouterr().err
    assert "hydra.sweeper.n_trials=0: give 1 or more" in told and "hydra.sweeper.n_jobs=0: give 1 or more" in told


@pytest.mark.long
def test_a_trial_that_fails_does_not_end_the_search(sweep: Sweep, base: list[str]) -> None:
    assert (
        sweep(*searching("failing", "model.lora.rank=choice(4,0)", trials=2)) == STEPS
    )  # twice the same: trained once
    assert [state.name for _, state, _ in told(base, "failing")] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_the_first_trial_to_fail_ends_it(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sweep(*searching("misspelt", "model.lora.method=choice(lora,rola)", "hydra.sweeper.seed=0"))
    assert "model.lora.method='rola': expected one of lora" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["fold=0,1", "engine=zero0,zero2", "limit=choice(20,30)"])
def test_what_makes_no_other_model_cannot_be_searched(
    sweep: Sweep, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sweep(*searching("folds", key))
    assert f"{key.split('=')[0]} cannot be searched" in capsys.readouterr().err


def test_the_table_and_the_page_hold_the_numbers_of_the_files(
    sweep: Sweep, base: list[str], straight: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(*base, f"name={straight}")
    sweeps.main(config)
    page = config.root / "sweeps" / "students" / straight / "sweeps.html"
    html, runs = page.read_text(), pl.read_parquet(page.with_name("sweep.parquet"))
    printed = capsys.readouterr().out
    assert runs["state"].to_list() == ["finished", "pruned"]
    assert runs["optimizer.head_lr"].to_list() == [0.004, 3.0]
    for row, override in zip(runs.iter_rows(named=True), (GOOD, BAD), strict=True):
        run = folder(base, straight, override)
        metrics, history = json.loads((run / "metrics.json").read_text()), pl.read_parquet(run / "history.parquet")
        assert {name: row[name] for name in ("validation_log_loss", "best_step", "steps")} == {
            name: metrics[name] for name in ("validation_log_loss", "best_step", "steps")
        }
        assert row["hours"] == history["seconds"].sum() / 3600
        assert f"{metrics['validation_log_loss']:.4f}" in printed
        for value in history["validation_log_loss"].drop_nulls():
            assert str(value) in html
    assert not re.search(r"<script[^>]*\ssrc=|<link\s|<img\s", html)  # nothing is loaded from elsewhere


@pytest.mark.long
def test_folds_run_as_jobs_of_the_local_launcher_and_are_averaged(base: list[str]) -> None:
    """Two jobs at once, each in its own process, through submitit's real local executor."""
    jobs = ["name=folds", "fold=0,1", "hydra/launcher=local", "hydra.launcher.timeout_min=5"]
    succeeds("distill.student", "-m", *base, *jobs)
    losses = [
        json.loads((folder(base, "folds", f"fold={k}") / "metrics.json").read_text())["validation_log_loss"]
        for k in (0, 1)
    ]
    printed = succeeds("distill.sweeps", *base, "name=folds")
    assert f"mean log loss {sum(losses) / 2:.4f} over folds 0, 1" in re.sub(r"\s+", " ", printed)


@pytest.mark.long
def test_the_tasks_of_a_job_are_ranks_of_one_training_and_stop_together(base: list[str]) -> None:
    jobs = ["hydra/launcher=local", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=5"]
    succeeds("distill.student", "-m", *base, *searching("ranks", trials=2), *jobs)
    assert read_manifest(folder(base, "ranks", GOOD), "student").extra["ranks"] == 2
    assert [state.name for _, state, _ in told(base, "ranks")] == ["COMPLETE", "PRUNED"]


STAND_INS = {  # for the commands of a cluster: one node, one task, a queue that starts a job at once
    "sbatch": 'cp "$1" $CLUSTER/job.sh; bash $CLUSTER/start > $CLUSTER/output 2>&1 & echo "Submitted batch job 7"',
    "start": "SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_JOB_NODELIST=localhost setsid bash $CLUSTER/job.sh",
    "srun": 'while [[ $1 == --* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done; "$@" & '
    "echo $! > $CLUSTER/pid; wait",
    "sacct": 'echo "JobID|State|NodeList"; echo "7|RUNNING|localhost"',
    "scontrol": 'echo "$@" >> $CLUSTER/requeued; bash $CLUSTER/start > $CLUSTER/output 2>&1 &',
}


@pytest.mark.long
def test_a_slurm_job_whose_time_is_up_is_requeued_and_goes_on(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{{ {script}\n}} 2>> {tmp_path}/log\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(tmp_path))
    run = folder(base, "slurm", "train.epochs=12")

    def time_is_up() -> None:
        while not (run / "checkpoints" / LATEST).exists():
            time.sleep(0.01)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR2)

    watcher = threading.Thread(target=time_is_up, daemon=True)
    watcher.start()
    job = ["hydra/launcher=slurm", "hydra.launcher.tasks_per_node=1", "hydra.launcher.gres=gpu:1"]
    succeeds("distill.student", "-m", *base, "name=slurm", "train.epochs=12", *job)
    watcher.join()
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "7"]
    assert pl.read_parquet(run / "history.parquet")["step"].to_list() == list(range(1, 12 * 3 + 1))
    assert read_manifest(run, "student")
    script = (tmp_path / "job.sh").read_text()
    assert re.search(r"^srun .*--kill-on-bad-exit=1 ", script, re.MULTILINE), "one dead rank ends the job"
    flags = set(re.findall(r"#SBATCH --(.*)", script))
    expected = {"gres=gpu:1", "cpus-per-task=8", "time=1440", "signal=USR2@120", "requeue", "job-name=slurm", "nodes=1"}
    assert flags >= expected, flags


def test_the_hostfile_example_is_one_that_deepspeed_reads() -> None:
    assert fetch_hostfile(str(Path(CONF, "hostfile.example"))) == {"node-1": 8, "node-2": 8}


def test_the_search_that_ships_composes_and_names_keys_that_exist() -> None:
    output = subprocess.run(
        [sys.executable, "-m", "distill.student", "+exp=gemma9b", "+sweep=optuna", "--cfg", "hydra"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    ranges = dict(re.findall(r"^ +([a-z_.]+): ((?:interval|tag|choice)\(.*\))$", output, re.MULTILINE))
    assert set(ranges) == {"loss.kl.temperature", "loss.kl.weight", "optimizer.lr", "model.lora.rank"}
    configured("+exp=gemma9b", *(f"{key}={re.findall(r'[0-9][0-9.e-]*', text)[0]}" for key, text in ranges.items()))


@pytest.mark.long
def test_without_a_search_optuna_is_not_imported(base: list[str]) -> None:
    modules = "students.training.loop, distill.student, hydra_plugins.optuna_sweeper"
    code = f"import sys, {modules}; print('optuna' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert loaded.stdout.split()[-1:] == ["False"], loaded.stderr
