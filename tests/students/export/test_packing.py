"""A packed judge: without the weights, and the same judge once a machine has merged them again."""

import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.table import load_conversations
from core.errors import UserError
from core.exported import PACKED_EXPORT, PACKED_RUN, open_exported
from core.json_files import write_json
from core.scoring import score_conversations
from core.tables import read_parquet
from distill import export, predict, prepare, student
from distill.artefacts import judge_folder, named_judges
from distill.config import Config
from distill.status.judges import evaluation_of
from distill.training_run import run_folder
from eval.canaries.checking import check_canaries
from eval.judges.candidates import candidates
from students.export import packing
from students.export.packing import pack, unpack
from students.trained import open_trained
from teachers.scorers.opening import open_scorer
from tests.artefacts import finish_again
from tests.composing import configured, scorer
from tests.running import ROOT
from tests.serving import PAIR, started

pytestmark = pytest.mark.timeout(300)
POINTWISE = ("model.kind=pointwise", "prompt=pointwise", "prompt.max_tokens=160")
FORMAT = ("export.format=merged", "export.dtype=fp32", "scorer@scorers.check=transformers")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Config:
    """A pointwise judge of votes, and its export."""
    root = tmp_path_factory.mktemp("artifacts")
    told = (f"paths.root={root}", f"model.base={tiny_llama}", "model.layers=null", "train.epochs=1", "loss=votes")
    config = configured("+exp=smoke", *told, *POINTWISE, *FORMAT, "canaries.rows=8", "canaries.repeats=2")
    config = replace(config, run="smoke")
    prepare.main(config)
    student.main(config)
    export.main(config)
    return config


@pytest.fixture(scope="module")
def packed(exported: Config) -> Path:
    folder = exported.root / "judges" / "small"
    pack(open_trained(run_folder(exported), exported.root, ""), exported.export_folder(), folder)
    return folder


def test_it_holds_no_weights_of_the_base(packed: Path) -> None:
    names = {path.name for path in packed.rglob("*") if path.is_file()}
    assert {"adapter_model.safetensors", "canaries.parquet", "fidelity.json", "learned_from.parquet"} <= names
    assert not {"model.safetensors", "tokenizer.json", "config.json"} & names
    assert not (packed / PACKED_RUN / "checkpoints").exists()


def test_unpacked_elsewhere_it_is_the_same_judge(
    packed: Path, exported: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(packed, tmp_path / "shipped")
    config = replace(exported, paths=replace(exported.paths, root=str(tmp_path / "artifacts")))
    found = judge_folder(config, str(place))
    assert judge_folder(config, str(place)) == found and judge_folder(config, None) == config.export_folder()
    (merged,) = (tmp_path / "artifacts" / "models").glob("merged-*")
    assert not (merged / "learned_from.parquet").samefile(found / "learned_from.parquet"), "written through a link"
    rows = load_conversations(exported.root / "data" / "smoke")[:12]
    said = []
    for folder in (exported.export_folder(), found):
        judge = open_exported(folder)
        with open_scorer(judge.folder, scorer("transformers"), judge.max_tokens) as opened:
            assert not check_canaries(judge.folder, judge.renderer, opened, "refuse")
            said.append(np.array(score_conversations(opened, judge.renderer, rows)["logits"].to_list()))
    assert np.abs(said[0] - said[1]).max() < 1e-5
    asked: list[Any] = []
    monkeypatch.setattr("deploy.predicting.run.write_predictions", lambda *told: asked.append(told[2]))
    cascade = replace(config.predict, cascade=[str(exported.export_folder()), str(place)])
    predict.main(replace(config, predict=cascade, output=str(tmp_path / "out.csv")))
    assert [*asked[0].values()] == [exported.export_folder(), found], "in a cascade, too"
    for name in ("manifest.json", "fidelity.json"):
        there, here = (json.loads((folder / name).read_text()) for folder in (exported.export_folder(), found))
        assert there == here or (there["config"], there["prompt"], there["rows"]) == (
            *(here[key] for key in ("config", "prompt", "rows")),
        )


def test_make_try_serves_it_without_anything_prepared(packed: Path, tmp_path: Path) -> None:
    shown = subprocess.run(["make", "-n", "try", "PY=python"], cwd=ROOT, capture_output=True, text=True, check=True)
    python, m, module, *arguments = shlex.split(shown.stdout)
    assert (python, m, module, arguments[0]) == ("python", "-m", "distill.serve", "serve.model=judges/human")
    root = tmp_path / "artifacts"
    with started(root, f"serve.model={packed}", *arguments[1:]) as server:
        model = server.get("/v1/model").json()
        assert model["model"].startswith("judges/small@") and model["computes_otherwise"] is None
        (answer,) = server.judge(PAIR)
        assert sum(answer["probabilities"].values()) == pytest.approx(1) and not answer["flips"]
        assert "Try an example" in server.get("/").text
        said = server.log.read_text()
        assert "8 canaries" in said and f"judges/small@{model['model'].split('@')[1]} is ready on {server.url}" in said
    assert len([*root.glob("models/unpacked-*")]) == 1 and not (root / "data").exists()


def test_it_is_among_the_judges_of_an_evaluation(packed: Path, exported: Config) -> None:
    config = replace(exported, eval=replace(exported.eval, judges={"shipped": str(packed)}))
    with pytest.raises(UserError, match=r"models/unpacked-\w+ does not exist"):
        evaluation_of(config)  # `distill.status` only looks
    found = candidates(config.root, config.run, config.fold, {}, named_judges(config))
    (shipped,) = [candidate for candidate in found if candidate.named]
    assert (shipped.name, shipped.stage) == ("shipped", "export") and open_exported(shipped.path).labels
    assert shipped.path in evaluation_of(config).parents


def test_what_cannot_be_packed_is_refused(exported: Config, tmp_path: Path) -> None:
    judge = open_trained(run_folder(exported), exported.root, "")
    other = shutil.copytree(exported.export_folder(), tmp_path / "other")
    manifest: dict[str, Any] = json.loads((other / "manifest.json").read_text())
    write_json(other / "manifest.json", {**manifest, "parents": {"students/x/fold=0": "0" * 64}})
    with pytest.raises(UserError, match="was not made from"):
        pack(judge, other, tmp_path / "out")
    settings = {**manifest["config"], "export": {**manifest["config"]["export"], "dtype": "fp16"}}
    write_json(other / "manifest.json", {**manifest, "config": settings})
    with pytest.raises(UserError, match=r"in format merged and fp16: export with export.format=merged"):
        pack(judge, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_merge_makes_again_is_left_out(packed: Path) -> None:
    names = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.json", "merges.txt")
    assert all(packing._is_model(name) for name in (*names, "added_tokens.json", "special_tokens_map.json"))
    assert not any(packing._is_model(path.name) for path in (packed / PACKED_EXPORT).iterdir())


def of_another_run(packed: Path, place: Path) -> Path:
    """A packed judge whose run is another than its export was made from."""
    shutil.copytree(packed, place)
    history = place / PACKED_RUN / "history.parquet"
    read_parquet(history).with_columns(loss=0.0).write_parquet(history)
    finish_again(place / PACKED_RUN)
    return place


def test_a_run_with_the_export_of_another_is_refused(packed: Path, tmp_path: Path) -> None:
    place = of_another_run(packed, tmp_path / "mixed")
    with pytest.raises(UserError, match=r"mixed mixes two judges: export/ was not made from what lies in run/"):
        unpack(place, tmp_path / "artifacts")
    assert not [*(tmp_path / "artifacts").rglob("unpacked-*")]


def test_what_was_unpacked_is_taken_for_the_same_run_alone(packed: Path, tmp_path: Path) -> None:
    """Two runs may give exports of which all that is shipped is the same."""
    place = of_another_run(packed, tmp_path / "other")
    run, export = (json.loads((place / part / "manifest.json").read_text()) for part in (PACKED_RUN, PACKED_EXPORT))
    write_json(place / PACKED_EXPORT / "manifest.json", {**export, "parents": {"students/x": run["content"]}})
    root = tmp_path / "artifacts"
    assert unpack(packed, root) != unpack(place, root)


def test_what_the_export_did_not_hold_is_refused(packed: Path, tmp_path: Path) -> None:
    place = shutil.copytree(packed, tmp_path / "more")
    (place / PACKED_EXPORT / "calibration.json").write_text("{}")
    with pytest.raises(UserError, match=r"has changed since it was packed \(calibration.json\): get .*more anew"):
        unpack(place, tmp_path / "artifacts")


def test_an_adapter_that_was_changed_is_refused(packed: Path, tmp_path: Path) -> None:
    place = shutil.copytree(packed, tmp_path / "shipped")
    config = place / PACKED_RUN / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))
    with pytest.raises(UserError, match=r"run has changed since its manifest was written"):
        unpack(place, tmp_path / "artifacts")
    place = shutil.copytree(packed, tmp_path / "other")
    (place / PACKED_EXPORT / "fidelity.json").write_text("{}")
    (place / PACKED_EXPORT / "canaries.parquet").unlink()
    with pytest.raises(
        UserError, match=r"changed since it was packed \(canaries.parquet, fidelity.json\): get .*other"
    ):
        unpack(place, tmp_path / "artifacts")
    shutil.rmtree(place / PACKED_EXPORT)
    assert judge_folder(configured("+exp=smoke"), str(place)) == place  # for `open_exported` to say what it lacks
