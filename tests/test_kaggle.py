"""The bundle for Kaggle, unpacked elsewhere: its notebook's own commands predict from it, without this checkout."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distill.arena_sim import simulate
from distill.canaries import CANARIES
from distill.config import SimulateConfig, to_mapping
from distill.prompts import Renderer
from distill.provenance import Learned, write_learned
from distill.runs import write_manifest
from eval.predicting.submission import check_submission
from kaggle.bundle import COMPETITION, LONGEST_SLUG, own_overrides, slug_of
from tests.composing import configured
from tests.running import refuses, succeeds
from tests.tiny_exports import with_canaries
from tests.tiny_models import tiny_judge

pytestmark = pytest.mark.timeout(600)
ROWS = 12


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a tiny export, made by the door."""
    root = tmp_path_factory.mktemp("artifacts")
    export = tiny_judge(root / "exports" / "smoke" / "w8a8", "gemma2")
    prompt = configured("+exp=smoke").prompt
    renderer = Renderer(prompt, export)
    with_canaries(export, renderer)
    write_learned(export, Learned())
    write_manifest(export, "export", {"prompt": to_mapping(prompt)}, [], root, prompt=renderer.hashes)
    arguments = ["+exp=smoke", f"paths.root={root}", f"output={root / 'bundle'}", "predict.scorer.backend=transformers"]
    succeeds("kaggle.bundle", *arguments)
    assert "is there already" in refuses("kaggle.bundle", *arguments)
    mine = root / "mine"
    mine.mkdir()
    (mine / "notes.txt").touch()
    assert "is no bundle" in refuses("kaggle.bundle", *arguments, f"output={mine}", "overwrite=true")
    assert (mine / "notes.txt").exists()
    return root / "bundle"


def notebook_code(bundle: Path, *, without: str) -> str:
    """The code of all cells as one script, but for those that are tagged so."""
    notebook = json.loads((bundle / "notebook" / "notebook.ipynb").read_text())
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and without not in c["metadata"].get("tags", [])]
    return "\n".join("".join(cell["source"]) for cell in cells)


def test_the_notebook_predicts_from_an_unpacked_bundle(bundle: Path, tmp_path: Path) -> None:
    slug = json.loads((bundle / "dataset" / "dataset-metadata.json").read_text())["id"].split("/")[1]
    unpacked = shutil.copytree(bundle / "dataset", tmp_path / "input" / slug)
    contest, working = tmp_path / "input" / COMPETITION, tmp_path / "working"
    contest.mkdir()
    working.mkdir()
    conversations = simulate(SimulateConfig(ROWS, seed=5))[0]
    with (contest / "test.csv").open("w", newline="") as file:
        rows = [(c.id, *map(json.dumps, (c.prompt, c.response_a, c.response_b))) for c in conversations]
        csv.writer(file).writerows([("id", "prompt", "response_a", "response_b"), *rows])
    script = notebook_code(bundle, without="install").replace("/kaggle/", f"{tmp_path}/")
    assert "predict.devices=2" in script and str(tmp_path) in script
    assert (unpacked / "model" / CANARIES).exists()  # what the notebook checks its engines with
    for folder in (unpacked / "code").rglob("*"):
        folder.chmod(0o555 if folder.is_dir() else 0o444)  # as inputs are there
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=working, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    check_submission(working / "submission.csv", [c.id for c in conversations])
    assert [path.name for path in working.iterdir()] == ["submission.csv"]
    assert "winner_model_a" in done.stdout


def test_the_bundle_says_what_kaggle_and_pip_need(bundle: Path) -> None:
    dataset, notebook = bundle / "dataset", bundle / "notebook"
    (wheel,) = (dataset / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "judge_vllm_plugin.py" in names and "vllm.general_plugins" in archive.read(entry_points).decode()
    pins = [line.split()[0] for line in (dataset / "requirements.txt").read_text().splitlines() if line[:1].isalpha()]
    assert all("==" in pin for pin in pins) and any(pin.startswith("vllm==") for pin in pins)
    install = notebook_code(bundle, without="parameters")
    assert "--no-index" in install and "requirements.txt" in install
    kernel = json.loads((notebook / "kernel-metadata.json").read_text())
    data = json.loads((dataset / "dataset-metadata.json").read_text())
    assert kernel["dataset_sources"] == [data["id"]] and kernel["enable_internet"] is False
    assert (notebook / kernel["code_file"]).exists()
    assert 6 <= len(data["title"]) <= LONGEST_SLUG and 5 <= len(kernel["title"]) <= LONGEST_SLUG
    found = json.loads((notebook / "notebook.ipynb").read_text())
    assert found["nbformat"] == 4 and len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    ast.parse(notebook_code(bundle, without="none"))


def test_names_and_overrides_are_the_notebooks() -> None:
    assert slug_of("judge-demo,loss=wsdm3/x") == "judge-demo-loss-wsdm3-x"
    assert len(slug_of("judge-" + "gemma9b,student.lora.rank=64," * 9)) <= LONGEST_SLUG
    given = ["+exp=gemma9b", "output=x", "predict.model=y", "predict.second_order=0.5", "canaries=warn", "check=z"]
    assert own_overrides(given) == ["+exp=gemma9b", "predict.second_order=0.5", "canaries=warn"]
