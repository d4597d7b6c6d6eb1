"""`python -m distill.status`: it says done only of what its stage would leave alone, and touches nothing."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST, content_hash
from core.artefacts.manifest import Manifest, read_manifest
from core.data.table import save_conversations, to_frame
from core.errors import UserError
from core.json_files import write_json
from core.locks import alone, lock_of
from core.records import Conversation
from core.store.rows import LOGITS, REWARDS
from core.store.writing import StoreWriter
from distill import prepare
from distill.artefacts import data_folder
from distill.config import Config, PathsConfig
from distill.logits import judged_logits, logits_folder, reward_logits, teacher_folders
from distill.status import figures
from distill.status.__main__ import table
from distill.status.following import following
from distill.status.judges import evaluation_of, export_of, has_test_split
from distill.status.stage import Stage
from distill.status.stages import stages_of
from distill.training_run import training_run
from teachers.scoring_run import store_identity
from tests.artefacts import finish_again
from tests.composing import configured
from tests.running import ROOT
from tests.test_architecture import HEAVY

LOSS = {"difference": 0.001, "ci": [-0.001, 0.003]}
METRICS = {"validation_log_loss": 1.05, "best_step": 8, "steps": 10}
RESULT = {
    "judges": {"student": {"log_loss": 1.0, "log_loss_ci": [0.9, 1.1]}},
    "gain": None,
    "split": "test",
    "rows": 12,
}
NAMES = ["data smoke", "teacher smoke, fold 0", "logits of smoke", "student smoke, fold 0", "export w8a8", "eval"]


def finish(artefact: Artefact, files: dict[str, Any], **more: Any) -> None:
    """What a stage would leave, without its work."""
    artefact.folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        write_json(artefact.folder / name, value)
    artefact.finish(**more)


def train(config: Config) -> None:
    finish(training_run(config).artefact, {"metrics.json": METRICS}, prompt={"prompt": "p", "template": "t"})


def score(config: Config) -> None:
    judge = read_manifest(teacher_folders(config)[0]).content
    with StoreWriter(logits_folder(config), store_identity("p", config.scorers.teacher.precision), judge, 0) as writer:
        writer.append(pl.DataFrame(schema=LOGITS))
    judged_logits(config, {0: judge}).finish(rows={"logits": 120})


def export(config: Config) -> None:
    finish(export_of(config), {"fidelity.json": {"differences": {"log_loss": LOSS}}}, extra={"failed": []})


def evaluate(config: Config) -> None:
    finish(evaluation_of(config), {"metrics.json": RESULT})


STEPS: list[Callable[[Config], None]] = [
    prepare.main,
    lambda config: train(replace(config, role="teacher")),
    score,
    train,
    export,
    evaluate,
]


composed = lru_cache(configured)


def configure(root: Path, *overrides: str) -> Config:
    return replace(composed("+exp=smoke", *overrides), paths=PathsConfig(str(root)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the smoke experiment, done."""
    root = tmp_path_factory.mktemp("status")
    for step in STEPS:
        step(configure(root))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "artifacts")


def states(config: Config) -> dict[str, str]:
    return {stage.name: stage.state.name for stage in stages_of(config)}


def reason(config: Config, name: str) -> str:
    return next(stage.state.reason for stage in stages_of(config) if stage.name == name)


def shown(config: Config, stages: list[Stage]) -> str:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(config, stages))
    return console.export_text()


def test_each_stage_is_missing_then_done_and_the_next_command_is_told(tmp_path: Path) -> None:
    config = configure(tmp_path)
    commands = [
        "distill.prepare +exp=smoke",
        "distill.student +exp=smoke fold=0 role=teacher",
        "distill.teacher +exp=smoke",
        "distill.student +exp=smoke fold=0",
        "distill.export +exp=smoke",
        "eval +exp=smoke",
    ]
    for done, (step, command) in enumerate(zip(STEPS, commands, strict=True)):
        found = list(stages_of(config))
        assert [stage.name for stage in found] == NAMES
        assert [stage.state.name for stage in found] == ["done"] * done + ["missing"] * (len(STEPS) - done)
        assert following(config, found, ["+exp=smoke"]) == f"next: python -m {command}"
        step(config)
    found = list(stages_of(config))
    assert {stage.state.name for stage in found} == {"done"}
    assert following(config, found, ["+exp=smoke"]).startswith("all done: python -m distill.predict +exp=smoke")
    text = shown(config, found)
    for figure in ("60 conversations, 5 folds", "120 rows", "validation log loss 1.0500", "+0.0010", "1.0000 (0.9000"):
        assert figure in re.sub(r"\s+", " ", text), text
    assert max(map(len, text.splitlines())) <= 100


def test_the_default_configuration_and_a_teacher_s_experiment_have_a_state(tmp_path: Path) -> None:
    default = replace(composed(), paths=PathsConfig(str(tmp_path)))
    assert set(states(default).values()) == {"missing"}
    assert "teacher.name=null" in reason(default, "student default, fold 0")
    teacher = replace(composed("+exp=human_teacher"), paths=default.paths)
    assert [*states(teacher)][1:] == [f"teacher human_teacher, fold {fold}" for fold in (0, 1, 2)]
    mixture = replace(composed("+exp=wsdm3"), paths=default.paths)
    assert {"logits of teacher_llama70b", "logits of teacher_qwen72b", "logits of wsdm3_teachers"} <= {*states(mixture)}


@pytest.mark.parametrize(
    ("override", "changed", "told"),
    [
        ("data.test_share=0.3", "data smoke", "test_share: there 0.2, now 0.3"),
        ("limit=50", "data smoke", "limit: there None, now 50"),
        ("scorers.teacher.dtype=fp32", "logits of smoke", "dtype: there 'auto', now 'fp32'"),
        ("export.calibration_rows=17", "export w8a8", "export.calibration_rows: there 16, now 17"),
        ("fidelity.kl=0.2", "export w8a8", "fidelity.kl: there 0.1, now 0.2"),
        ("eval.bootstrap=101", "eval", "eval.bootstrap: there 100, now 101"),
        ("canaries.on_failure=warn", "eval", "eval.canaries: there 'refuse', now 'warn'"),
    ],
)
def test_another_key_makes_its_stage_stale_and_all_that_follows(
    root: Path, override: str, changed: str, told: str
) -> None:
    config = configure(root, override)
    found = states(config)
    first = NAMES.index(changed)
    assert told in reason(config, changed)
    assert [found[name] for name in NAMES[first:]] == ["stale"] * (len(NAMES) - first)
    if "limit" not in override:  # that is the training's and the evaluation's, too
        assert [found[name] for name in NAMES[:first]] == ["done"] * first


def artefacts(config: Config) -> dict[str, Artefact]:
    """As the stages ask for them."""
    judge = read_manifest(teacher_folders(config)[0]).content
    return {
        "teacher smoke, fold 0": training_run(replace(config, role="teacher")).artefact,
        "logits of smoke": judged_logits(config, {0: judge}),
        "student smoke, fold 0": training_run(config).artefact,
        "export w8a8": export_of(config),
        "eval": evaluation_of(config),
    }


def test_what_is_done_is_what_the_stages_leave_alone(root: Path) -> None:
    config = configure(root)
    prepare.main(config)
    assert all(artefact.is_finished() for artefact in artefacts(config).values())
    settings = replace(config.train, epochs=9), replace(config.optimizer, clip=0.5)
    for changed in (
        replace(config, train=settings[0]),
        replace(config, optimizer=settings[1]),
        replace(config, seed=5),
    ):
        found = states(changed)
        for name, artefact in artefacts(changed).items():
            if found[name] == "done":
                assert artefact.is_finished()
        assert found["student smoke, fold 0"] == found["teacher smoke, fold 0"] == "stale"
        with pytest.raises(UserError, match="made differently"):
            training_run(changed).artefact.is_finished()


def test_a_parent_that_changes_or_goes_is_named(root: Path) -> None:
    config = configure(root)
    (data_folder(config) / "more").write_text("x")
    finish_again(data_folder(config))
    found = states(config)
    assert [found[name] for name in NAMES] == ["done"] + ["stale"] * 5
    assert reason(config, "student smoke, fold 0") == "data/smoke has changed"
    assert reason(config, "export w8a8") == "made of teacher smoke, fold 0, which is stale"
    for name, artefact in artefacts(config).items():
        if name != "export w8a8":  # distill.export looks at its student's data itself
            with pytest.raises(UserError, match="data/smoke"):
                artefact.is_finished()
    (data_folder(config) / MANIFEST).unlink()
    found = states(config)
    assert found["data smoke"] == "interrupted" and "done" not in {found[name] for name in NAMES[1:]}
    assert "data/smoke is not finished" in reason(config, "teacher smoke, fold 0")


def test_a_new_judge_makes_the_evaluation_stale(root: Path) -> None:
    config = configure(root)
    train(configure(root, "loss=votes"))
    assert states(config)["eval"] == "stale"
    assert reason(config, "eval") == "students/smoke,loss=votes/fold=0 is new"
    write_json(root / "eval/smoke/metrics.json", RESULT | {"unanswered": {"student_w8a8": "no memory"}})
    evaluate_again = evaluation_of(config)
    evaluate_again.finish()
    assert "student_w8a8 gave no answer" in reason(config, "eval")


def test_damage_is_told(root: Path) -> None:
    config, student, whole = configure(root), root / "students/smoke/fold=0", "manifest.json"
    metrics = student / "metrics.json"
    metrics.write_text(metrics.read_text().replace("1.05", "1.06"))
    os.utime(metrics, (time.time() + 9, time.time() + 9))  # as soon as its clock ticks
    assert reason(config, NAMES[3]) == "metrics.json has other bytes, since it was finished"
    metrics.write_text("{}")
    assert "metrics.json has 2 bytes, not" in reason(config, NAMES[3])
    (student / whole).write_text("{")
    found = next(stage for stage in stages_of(config) if stage.name == NAMES[3])
    assert found.state.name == "stale" and "is damaged, it is not JSON" in found.state.reason
    assert "is damaged, it is not JSON" in reason(config, "export w8a8") and states(config)["export w8a8"] == "stale"
    (root / "logits/smoke" / whole).write_text('{"stage": 1}')
    assert "of another version of this project" in reason(config, "logits of smoke")


def test_a_lock_tells_who_is_at_work_and_a_dead_one_that_it_ended(root: Path) -> None:
    config, folder = configure(root), root / "exports/smoke/w8a8"
    with alone(folder):
        found = next(stage for stage in stages_of(config) if stage.name == "export w8a8")
        assert found.state.name == "running" and found.state.since == pytest.approx(time.time(), abs=60)
        assert found.state.reason.startswith(f"pid {os.getpid()} on {os.uname().nodename}, ")
        assert following(config, [found], []) == "next: export w8a8 is being made; look again when it is done"
    (folder / MANIFEST).unlink()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    lock_of(folder).write_text(f"pid {child.pid} on {os.uname().nodename}")
    assert states(config)["export w8a8"] == "interrupted"
    assert f"pid {child.pid} on" in reason(config, "export w8a8")
    lock_of(folder).write_text(f"pid {os.getppid()} on {os.uname().nodename}")
    os.utime(lock_of(folder), (0, 0))  # that number belonged to another process then
    assert states(config)["export w8a8"] == "interrupted"
    lock_of(folder).write_text("pid 1 on elsewhere")
    assert states(config)["export w8a8"] == "running"


def test_what_is_partly_done_says_how_far(root: Path) -> None:
    config = configure(root)
    (logits_folder(config) / MANIFEST).unlink()
    (root / "students/smoke/fold=0" / MANIFEST).unlink()
    (root / "students/smoke/fold=0/checkpoints").mkdir()
    write_json(root / "students/smoke/fold=0/checkpoints/latest.json", {"tag": "step-4", "step": 4, "steps": 10})
    rows = {stage.name: stage for stage in stages_of(config)}
    assert rows["logits of smoke"].state.name == rows["student smoke, fold 0"].state.name == "interrupted"
    assert rows["logits of smoke"].figure == "0 of about 120 rows"
    assert rows["student smoke, fold 0"].figure == "step 4 of 10 at its last checkpoint"


def test_rows_of_a_limit_are_not_all_rows(root: Path) -> None:
    config = configure(root)
    judged_logits(config, {0: read_manifest(teacher_folders(config)[0]).content}).finish(extra={"limit": 20})
    assert states(config)["logits of smoke"] == "interrupted"
    assert "only the first 20 conversations" in reason(config, "logits of smoke")


def test_an_export_that_failed_its_checks_is_told(root: Path) -> None:
    config = configure(root)
    export_of(config).finish(extra={"failed": ["kl differs by 1"]})
    assert states(config)["export w8a8"] == "failed" and reason(config, "export w8a8") == "kl differs by 1"


@pytest.mark.long
def test_fifty_variants_are_listed_quickly_each_beside_its_own_overrides(root: Path) -> None:
    for seed in range(1, 49):
        train(configure(root, f"seed={seed}"))
    train(configure(root, "loss=votes"))
    train(configure(root, "train.epochs=1", "loss=votes"))
    config, began = configure(root), time.process_time()
    found = states(config)
    assert time.process_time() - began < 1
    assert len(found) == len(NAMES) + 50
    variants = {
        name: state for name, state in found.items() if "," in name.removesuffix(", fold 0") and "smoke," in name
    }
    assert {state for name, state in variants.items() if name not in NAMES} == {"done"}
    other = replace(config, optimizer=replace(config.optimizer, clip=0.5))
    assert states(other)["student smoke,seed=7, fold 0"] == "stale"
    assert reason(other, "student smoke,seed=7, fold 0").startswith("optimizer.clip: there ")


def test_a_file_of_the_data_that_changes_or_goes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    cells = ["id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie"]
    cells += [f'{i},"[""{i}?""]","[""Yes""]","[""No""]",{i % 2},{1 - i % 2},0' for i in range(20)]
    path.write_text("\n".join(cells))
    config = configured(f"paths.root={tmp_path}", f"data.files=[{path}]")
    prepare.main(config)
    assert states(config)["data lmsys"] == "done"
    path.write_text("\n".join(cells[:-1]))
    found = next(stages_of(config))
    assert found.state.name == "stale" and "inputs.train" in found.state.reason
    with pytest.raises(UserError, match="made differently"):
        prepare.main(config)
    path.unlink()
    found = next(stages_of(config))
    assert found.state.name == "stale" and "matches no file" in found.state.reason
    assert "overwrite" not in following(config, [found], [])


def test_it_writes_nothing_imports_nothing_heavy_and_fits_a_terminal(root: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    code = (
        "import runpy, sys\n"
        f"sys.argv[1:] = ['+exp=smoke', 'paths.root={root}']\n"
        "runpy.run_module('distill.status', run_name='__main__', alter_sys=True)\n"
        f"print('heavy:', *({HEAVY - {'polars'}!r} & set(sys.modules)))\n"
    )
    environment = os.environ | {"NO_COLOR": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[-1] == "heavy:" and "\x1b" not in done.stdout and done.stderr == ""
    assert max(map(len, lines[:-2])) <= 100 and sum(" done " in line for line in lines) == len(NAMES), done.stdout
    assert before == {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    assert json.loads((root / "data/smoke/manifest.json").read_text())["stage"] == "prepare"


def test_a_command_of_another_experiment_has_the_same_place_and_data(tmp_path: Path) -> None:
    given = ["+exp=blackpearl", f"paths.root={tmp_path}", "seed=3"]
    config = replace(composed(*given), paths=PathsConfig(str(tmp_path)))
    found = {stage.name: stage for stage in stages_of(config)}
    asked = f"+exp=teacher_llama70b data.name=lmsys_blackpearl paths.root={tmp_path} teacher.rows=in_fold"
    said = following(config, [found["logits of teacher_llama70b"]], given)
    assert said == f"next: python -m distill.teacher {asked}"


def test_what_is_too_large_to_be_compared_is_not_to_be_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.artefacts.manifest.GLANCE", 0)
    config, metrics = configure(root), root / "students/smoke/fold=0/metrics.json"
    os.utime(metrics, (time.time() + 9, time.time() + 9))
    found = {stage.name: stage for stage in stages_of(config)}
    assert "too large to be compared" in found[NAMES[3]].state.reason and found["export w8a8"].state.name == "done"
    assert following(config, [found[NAMES[3]]], []) == "next: python -m distill.student fold=0"
    assert training_run(config).artefact.is_finished()


def test_a_damaged_teacher_is_told_in_the_table(root: Path) -> None:
    config = configure(root)
    (root / "teachers/smoke/fold=0" / MANIFEST).write_text("{")
    assert "is damaged, it is not JSON" in reason(config, "teacher smoke, fold 0")
    assert states(config)["logits of smoke"] == "stale"


def test_rows_of_another_judge_or_kind_are_replaced_and_damaged_ones_are_not(root: Path) -> None:
    config, rewards = configure(root), root / "rewards/smoke"
    with StoreWriter(rewards, store_identity("p", config.scorers.teacher.precision), "judge", schema=REWARDS) as writer:
        writer.append(pl.DataFrame(schema=REWARDS))
    reward = configure(root, "teacher.kind=reward", "teacher.model=elsewhere/reward")
    reward_logits(reward, content_hash(rewards)).finish()
    assert states(reward)["logits of smoke"] == "done"
    write_json(root / "config.json", {})
    for override in ("scorers.teacher.dtype=fp32", f"teacher.model={root}"):
        changed = configure(root, "teacher.kind=reward", "teacher.model=elsewhere/reward", override)
        found = next(stage for stage in stages_of(changed) if stage.name == "logits of smoke")
        assert found.state.name == "stale"
        assert following(changed, [found], []) == "next: python -m distill.teacher overwrite=true"
    (rewards / "part-x-00000.parquet").write_text("x")
    found = next(stage for stage in stages_of(reward) if stage.name == "logits of smoke")
    assert found.state.name == "stale" and "overwrite" not in following(reward, [found], [])


def test_an_override_of_the_student_leaves_its_own_experiment_s_teacher_alone(root: Path) -> None:
    given = ["+exp=smoke", f"paths.root={root}", "seed=1"]
    config = replace(configure(root, "seed=1"), run="smoke,seed=1")
    found = {stage.name: stage for stage in stages_of(config)}
    assert [found[name].state.name for name in NAMES[:3]] == ["done"] * 3
    (root / "teachers/smoke/fold=0" / MANIFEST).unlink()
    teacher = next(stage for stage in stages_of(config) if stage.name == NAMES[1])
    asked = f"+exp=smoke data.name=smoke paths.root={root} fold=0 role=teacher"
    assert following(config, [teacher], given) == f"next: python -m distill.student {asked}"


def test_a_figure_whose_file_is_gone_is_left_out(root: Path) -> None:
    (root / "students/smoke/fold=0/metrics.json").unlink()
    found = next(stage for stage in stages_of(configure(root)) if stage.name == NAMES[3])
    assert (found.figure, found.state.reason) == ("", "metrics.json is gone, since it was finished")


def test_by_the_teacher_a_test_split_without_votes_is_scored(tmp_path: Path) -> None:
    rows = [Conversation(str(i), ["?"], ["x"], ["y"], votes=None if i else [1, 0, 0], fold=-i) for i in range(2)]
    save_conversations(tmp_path, to_frame(rows))
    Artefact(tmp_path, "prepare", {}, [], tmp_path).finish()
    assert has_test_split(tmp_path, unvoted=True) and not has_test_split(tmp_path, unvoted=False)


def test_an_evaluation_by_the_teacher_tells_no_log_loss_on_votes(tmp_path: Path) -> None:
    judges = {"student": {"log_loss": 0.5, "log_loss_ci": [0.4, 0.6]}, "teacher": {"log_loss": 0.3}}
    told = {"judges": judges, "gain": None, "split": "test", "rows": 10}
    for truth, loss, own in (
        ("votes", "log loss", ", log loss 0.3000"),
        ("teacher", "cross-entropy with its teacher", ""),
    ):
        write_json(tmp_path / "metrics.json", told | {"truth": truth})
        said = figures.of_evaluation(tmp_path, Manifest("eval", {}, {}, ""))
        assert said == f"student's {loss} 0.5000 (0.4000 to 0.6000) on 10 test rows"
        assert figures.teachers_log_loss(tmp_path) == own
