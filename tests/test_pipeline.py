"""The whole path through the entry points, on a tiny model with the real engines, and what bad input meets there."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from core.artefacts.manifest import read_manifest
from core.data.table import from_frame
from core.exported import open_exported
from core.provenance import read_learned
from core.records import TEST
from deploy.kaggle.runtimes import check_runs_on_kaggle
from eval.conformal import read_thresholds
from tests.artefacts import finish_again
from tests.eval.benchmarks.test_rows import RM_BENCH
from tests.running import refuses, run_command, succeeds

pytestmark = pytest.mark.timeout(580)
JUDGES = {"prior", "surface", "bradley_terry", "teacher", "student", "student_no_teacher", "student_w8a8"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, list[str]]:
    """(root, overrides) after every stage has run once."""
    root = tmp_path_factory.mktemp("pipeline")
    experiment = root / "pipeline.yaml"
    experiment.write_text(
        "# @package _global_\n"
        "defaults: [smoke]\n"
        "name: tiny\n"
        f"model: {{base: {tiny_llama}, layers: null}}\n"
        "teacher: {name: tiny}\n"
    )
    common = [f"hydra.searchpath=[file://{root}/conf]", "+exp=pipeline", f"paths.root={root}/artifacts"]
    (root / "conf" / "exp").mkdir(parents=True)
    experiment.rename(root / "conf" / "exp" / "pipeline.yaml")
    succeeds("distill.prepare", *common)
    succeeds("distill.student", *common, "role=teacher")
    succeeds("distill.teacher", *common)
    succeeds("distill.student", *common)
    succeeds("distill.student", *common, "loss=votes")
    succeeds("distill.export", *common)
    table = succeeds("eval", *common)
    assert all(judge in table for judge in JUDGES)
    return root / "artifacts", common


@pytest.mark.long
def test_every_stage_leaves_what_the_contract_says(finished: tuple[Path, list[str]]) -> None:
    root, _ = finished
    metrics = json.loads((root / "eval/tiny/metrics.json").read_text())
    assert set(metrics["judges"]) >= JUDGES and metrics["rows"] == 12
    for judge in JUDGES:
        low, high = metrics["judges"][judge]["log_loss_ci"]
        assert low <= metrics["judges"][judge]["log_loss"] <= high
        assert 0 <= metrics["judges"][judge]["flip_rate"] <= 1
    assert 0 < metrics["bayes"] < 1.0987
    rows = pl.read_parquet(root / "data/smoke/conversations.parquet")
    held_out, test = rows.filter(fold=0), rows.filter(fold=TEST)
    assert metrics["split"] == "test" and metrics["rows"] == len(test)
    assert all(of["taught"] == 0 for of in metrics["judges"].values())
    fidelity = json.loads((root / "exports/tiny/w8a8/fidelity.json").read_text())
    assert fidelity["rows"] == len(held_out) and fidelity["taught"] == 0  # its teacher is its own fold's
    assert fidelity["intervals"] == "jackknife"
    assert {of["verdict"] for of in fidelity["differences"].values()} <= {"within", "cannot tell", None}
    canaries = pl.read_parquet(root / "exports/tiny/w8a8/canaries.parquet")
    assert len(canaries) > 0 and set(canaries["id"]) <= set(rows.filter(pl.col("fold") > 0)["id"])
    assert (root / "eval/tiny/report.html").read_text().startswith("<!doctype html>")
    thresholds, sets = read_thresholds(root / "exports/tiny/w8a8"), metrics["judges"]["student_w8a8"]["sets"]
    assert thresholds is not None and sets["fitted_on"] == thresholds.groups > 1
    assert sets["asked"] == 0.9 and 1 <= sets["size"] <= 3 and metrics["judges"]["student"]["sets"] is None
    costs = metrics["costs"]["judges"]
    assert {"teacher", "student", "student_no_teacher", "student_w8a8"} == set(costs)
    assert all(cost["tokens"] > 0 and cost["hours"] for of in costs.values() for cost in of)
    logits = pl.read_parquet(root / "logits/tiny/part-*.parquet")
    assert len(logits) == 120 == logits.select("id", "order", "judge_fold").n_unique()
    assert set(logits.filter(~pl.col("in_sample"))["id"]) == {*held_out["id"], *test["id"]}
    learned = read_learned(root / "exports/tiny/w8a8")
    assert learned == read_learned(root / "students/tiny/fold=0") and learned.directly
    untouched = {c.fingerprint() for c in from_frame(pl.concat([held_out, test]))}
    assert not untouched & (learned.directly | learned.through_teachers)


@pytest.mark.long
def test_the_chain_of_parents_leads_back_to_the_data(finished: tuple[Path, list[str]]) -> None:
    root, _ = finished
    seen, todo = set(), ["eval/tiny"]
    while todo:
        name = todo.pop()
        seen.add(name)
        for parent, content in read_manifest(root / name).parents.items():
            assert read_manifest(root / parent).content == content
            todo.append(parent)
    assert {"data/smoke", "teachers/tiny/fold=0", "logits/tiny", "students/tiny/fold=0", "exports/tiny/w8a8"} <= seen


@pytest.mark.long
def test_a_finished_stage_is_not_run_again(finished: tuple[Path, list[str]]) -> None:
    root, common = finished
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    for command, extra in (
        ("distill.prepare", ()),
        ("distill.teacher", ()),
        ("distill.student", ()),
        ("distill.export", ()),
        ("eval", ()),
    ):
        succeeds(command, *common, *extra)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}


@pytest.mark.long
def test_a_benchmark_is_scored_by_every_judge_with_its_own_engine(finished: tuple[Path, list[str]]) -> None:
    root, common = finished
    path = root.parent / "rm_bench.jsonl"
    path.write_text("\n".join(map(json.dumps, RM_BENCH)))
    table = succeeds("eval", *common, f"benchmark={path}")
    assert "RM-Bench" in table and "4 rows of rm_bench.jsonl, 36 pairs" in table
    (folder,) = (root / "benchmarks/tiny").glob("rm_bench-*")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"teacher", "student", "student_no_teacher", "student_w8a8"} == {*metrics["judges"]}
    assert all(of["taught"] == 0 for of in metrics["judges"].values())
    parents = read_manifest(folder).parents
    assert {"teachers/tiny/fold=0", "students/tiny/fold=0", "exports/tiny/w8a8"} <= set(parents)
    before = (folder / "manifest.json").read_text()
    path.rename(path.with_name("renamed.jsonl"))
    succeeds("eval", *common, f"benchmark={path.with_name('renamed.jsonl')}")
    assert before == (folder / "manifest.json").read_text(), "the same file is not scored again"
    path.write_text(json.dumps(RM_BENCH[0] | {"rejected": None}))
    assert f"benchmark={path}: row 1: rejected is empty: None" in refuses("eval", *common, f"benchmark={path}")


@pytest.mark.long
def test_in_fold_targets_are_taken_only_when_asked_for(finished: tuple[Path, list[str]]) -> None:
    _, common = finished
    message = refuses("distill.student", *common, "teacher.rows=out_of_fold", "seed=5")
    lacking = re.search(r"the teacher's logits lack (\d+) of (\d+) conversations", message)
    assert lacking and lacking[1] == lacking[2] and "make teacher-logits" in message


@pytest.mark.long
def test_an_export_that_loses_too_much_is_kept_and_marked(finished: tuple[Path, list[str]]) -> None:
    root, common = finished
    lossy = ("export.format=merged", "export.dtype=bf16", "fidelity.kl=0")  # and so every row differs
    done = run_command("distill.export", *common, *lossy)
    assert done.returncode == 1 and "kl differs by" in done.stderr and "fidelity.kl=0" in done.stderr
    folder = root / "exports/tiny/merged"
    assert (folder / "model.safetensors").exists() and "kl differs" in read_manifest(folder).extra["failed"][0]
    with pytest.raises(ValueError, match="failed its checks"):
        open_exported(folder)
    assert open_exported(root / "exports/tiny/w8a8").max_tokens == 128
    assert read_manifest(root / "exports/tiny/w8a8").extra["fp16_margin"] > 2


@pytest.mark.long
def test_an_export_for_other_gpus_is_told_from_one_for_t4s(finished: tuple[Path, list[str]]) -> None:
    root, common = finished
    folder = root / "exports/tiny/merged"
    succeeds("distill.export", *common, "export.format=merged", "export.dtype=bf16", "overwrite=true")
    with pytest.raises(ValueError, match=r"does not run on T4s: .*bfloat16"):
        check_runs_on_kaggle(folder)
    check_runs_on_kaggle(root / "exports/tiny/w8a8")
    message = refuses("distill.export", *common, "t4.memory_gb=1")
    assert "t4.memory_gb" in message and "overwrite=true" in message


@pytest.mark.long
def test_a_folder_is_checked_for_t4s_alone(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, common = finished
    good = root / "exports/tiny/w8a8"
    assert "score head" in succeeds("distill.export", *common, f"check={good}")
    bad = shutil.copytree(good, tmp_path / "bad")
    tensors = load_file(bad / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    (bad / "model.safetensors").unlink()  # it may be a link to the good one's
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    done = run_command("distill.export", *common, f"check={bad}")
    assert done.returncode == 1 and "bf16" in done.stderr and "model.norm.weight" in done.stdout + done.stderr


@pytest.mark.long
def test_folds_are_averaged_compared_and_exported(finished: tuple[Path, list[str]]) -> None:
    root, common = finished
    succeeds("distill.student", *common, "fold=1", "loss=votes")
    folds = ("loss=votes", "export.folds=[0,1]", "export.compare_folds=true", "export.format=merged")
    shown = succeeds("distill.export", *common, *folds)
    for name in ("fold 0", "fold 1", "average, factors", "average, delta", "average, svd", "ensemble"):
        assert name in shown
    exported = read_manifest(root / "exports/tiny,loss=votes/merged-delta")
    average = next(name for name in exported.parents if "average-delta" in name)
    assert {*read_manifest(root / average).parents} == {f"students/tiny,loss=votes/fold={k}" for k in (0, 1)}


@pytest.mark.long
def test_other_folds_than_it_was_trained_on_are_noticed_by_its_export(finished: tuple[Path, list[str]]) -> None:
    root, common = finished
    data, backup = root / "data/smoke", root / "backup"
    shutil.copytree(data, backup)
    (data / "law.parquet").unlink()
    finish_again(data)
    message = refuses("distill.export", *common, "export.format=merged", "overwrite=true")
    shutil.rmtree(data)
    backup.rename(data)
    assert "was trained on other data than data.name=smoke holds now" in message


@pytest.mark.long
def test_a_tampered_adapter_is_noticed_by_its_export(finished: tuple[Path, list[str]]) -> None:
    root, common = finished
    path = root / "students/tiny,loss=votes/fold=0/adapter/adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "lora_A" in name))
    save_file(tensors, path)
    assert "has changed since its manifest was written" in refuses("distill.export", *common, "loss=votes")


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("distill.student", ["loss.soft_weigth=1"], "loss.soft_weigth"),
        ("distill.student", ["loss.kl.weight=high"], "loss.kl.weight='high': expected float"),
        ("distill.student", ["data=nothing"], "data/nothing"),
        ("distill.student", ["model.base=null", "loss=votes"], "data/lmsys does not exist"),
        ("distill.student", [], "teacher.name=null"),
        ("distill.teacher", ["data.name=smoke"], "teacher.name=null"),
        ("distill.export", ["+exp=smoke", "name=nobody"], "train the student first"),
        ("eval", ["+exp=smoke", "name=nobody", "data.name=nothing"], "python -m distill.prepare"),
        ("distill.prepare", ["data.files=[nothing-*.csv]"], "nothing-*.csv"),
    ],
)
def test_bad_configuration_meets_one_message(command: str, arguments: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in refuses(command, *arguments, f"paths.root={tmp_path}")


@pytest.mark.long
def test_a_model_without_tokenizer_is_refused_before_training(
    finished: tuple[Path, list[str]], tiny_llama: Path, tmp_path: Path
) -> None:
    _, common = finished
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    assert "has no tokenizer.json" in refuses("distill.student", *common, f"model.base={tmp_path}", "loss=votes")
