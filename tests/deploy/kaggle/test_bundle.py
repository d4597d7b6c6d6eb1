"""The bundle for Kaggle, unpacked elsewhere: its notebook's own commands predict from it, without this checkout."""

import ast
import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from core.artefacts.building import Artefact
from core.config import to_mapping
from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from core.prompts import Renderer
from core.provenance import Learned, write_learned
from deploy.kaggle.bundle import COMPETITION, LONGEST_SLUG, TEMPLATE, slug_of
from deploy.kaggle.runtimes import BESIDE_TORCH, backends_for, requirements_of
from deploy.predicting.submission import check_submission
from distill.command_line import CONF
from distill.kaggle import chooses_scorer, composes, notebook_overrides
from eval.canaries.checking import CANARIES
from tests import engines
from tests.composing import configured, scorer
from tests.imports import demands
from tests.running import refuses, succeeds
from tests.tiny_exports import with_canaries
from tests.tiny_models import tiny_judge

pytestmark = pytest.mark.timeout(600)
ROWS = 12
# Kaggle's image follows Colab's: the versions of May 2026, of which docker-python's Dockerfile is made (Python 3.12),
# as googlecolab/backend-info lists them.
IMAGE = {
    **{"antlr4-python3-runtime": "4.9.3", "datasets": "4.0.0", "filelock": "3.29.0", "fsspec": "2025.3.0"},
    **{
        "httpx": "0.28.1",
        "jinja2": "3.1.6",
        "markdown-it-py": "4.0.0",
        "numpy": "2.0.2",
        "packaging": "26.1",
        "psutil": "5.9.5",
    },
    **{
        "pydantic": "2.12.3",
        "pygments": "2.20.0",
        "pyyaml": "6.0.3",
        "regex": "2025.11.3",
        "scipy": "1.16.3",
        "torch": "2.10.0",
    },
    **{"tqdm": "4.67.3", "typer": "0.24.2", "typing-extensions": "4.15.0"},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a tiny export, made by the entry point."""
    root = tmp_path_factory.mktemp("artifacts")
    export = tiny_judge(root / "exports" / "smoke" / "w8a8", "gemma2")
    prompt = configured("+exp=smoke").prompt
    renderer = Renderer(prompt, export)
    with_canaries(export, renderer)
    write_learned(export, Learned())
    Artefact(export, "export", {"prompt": to_mapping(prompt)}, [], root).finish(prompt=renderer.hashes)
    arguments = [
        "+exp=smoke",
        f"paths.root={root}",
        f"output={root / 'bundle'}",
        "scorer@scorers.exported=transformers",
    ]
    succeeds("distill.kaggle", *arguments)
    assert "exists already" in refuses("distill.kaggle", *arguments)
    mine = root / "mine"
    mine.mkdir()
    (mine / "notes.txt").touch()
    assert "is no bundle" in refuses("distill.kaggle", *arguments, f"output={mine}", "overwrite=true")
    assert (mine / "notes.txt").exists()
    return root / "bundle"


def notebook_code(bundle: Path, *, without: str) -> str:
    """The code of all cells as one script, but for those that are tagged so."""
    notebook = json.loads((bundle / "notebook" / "notebook.ipynb").read_text())
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and without not in c["metadata"].get("tags", [])]
    return "\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.long
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
    (tmp_path / "sitecustomize.py").write_text(Path(engines.__file__).read_text() + "\nfork_engines()\n")
    code = 'str(bundle / "code")'
    assert script.count(code) == 1
    script = script.replace(code, f"{code} + ':{tmp_path}'")
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
    assert [path.name for path in dataset.glob("requirements*")] == ["requirements-transformers.txt"]  # as asked
    assert (dataset / "requirements-transformers.txt").read_text() == requirements_of("transformers")
    kernel = json.loads((notebook / "kernel-metadata.json").read_text())
    data = json.loads((dataset / "dataset-metadata.json").read_text())
    assert kernel["dataset_sources"] == [data["id"]] and kernel["enable_internet"] is False
    assert (notebook / kernel["code_file"]).exists()
    assert 6 <= len(data["title"]) <= LONGEST_SLUG and 5 <= len(kernel["title"]) <= LONGEST_SLUG
    found = json.loads((notebook / "notebook.ipynb").read_text())
    assert found["nbformat"] == 4 and len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    ast.parse(notebook_code(bundle, without="none"))


def pins(backend: str) -> dict[str, str]:
    lines = [line.split("#")[0] for line in requirements_of(backend).splitlines() if line[:1].isalpha()]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in map(Requirement, lines)}


def test_a_backend_s_wheels_are_all_that_it_takes_beside_kaggle_s_image() -> None:
    """Both what our code imports and what those packages ask for; transformers leaves the image its torch."""
    assert {"vllm", "torch"} <= {*pins("vllm")} and sorted(pins("transformers")) == sorted(BESIDE_TORCH)
    held = IMAGE | pins("transformers")
    of_vllm, brought = {"vllm", "ray", "xllamacpp"}, importlib.metadata.packages_distributions()
    quantised = {"compressed_tensors": "transformers, for w8a8, w8a16 and w4a16,"}
    demanded = demands("distill.predict") | quantised
    demanded.pop("gguf")  # for the base of a packed judge, which is unpacked before it is bundled
    for name, place in demanded.items():
        wheels = {canonicalize_name(wheel) for wheel in brought.get(name, [name])}
        assert wheels & {*held} or name in of_vllm, f"{place} imports {name}"
    for name in BESIDE_TORCH:
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": "", "python_version": "3.12"}):
                assert need.specifier.contains(held[canonicalize_name(need.name)], prereleases=True), f"{name}: {text}"


def test_transformers_is_left_out_where_fp16_weights_do_not_fit(bundle: Path) -> None:
    """It has no kernels for quantised weights."""
    export = bundle / "dataset" / "model"
    vllm, transformers = scorer("vllm"), scorer("transformers")
    assert backends_for(export, vllm, chosen=False, memory_gb=14) == ["vllm", "transformers"]
    assert backends_for(export, vllm, chosen=False, memory_gb=1e-6) == ["vllm"]
    assert backends_for(export, vllm, chosen=True, memory_gb=14) == ["vllm"]
    assert backends_for(export, transformers, chosen=True, memory_gb=14) == ["transformers"]
    assert backends_for(export, transformers, chosen=False, memory_gb=14) == ["transformers"]  # the experiment's


def wheel(folder: Path, name: str, tag: str = "py3-none-any") -> None:
    """A wheel that installs nothing."""
    information = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as archive:
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{information}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{information}/RECORD", "")


@pytest.mark.parametrize(
    ("version", "tag", "chosen", "said"),
    [
        ("580.95.05", "py3-none-any", "vllm", "driver 580, Python"),
        ("570.1", "py3-none-any", "transformers", "not vllm: its CUDA needs driver 580 or newer"),
        (
            "595.1",
            "cp39-cp39-any",
            "transformers",
            "not vllm: ERROR: Could not find a version that satisfies the requirement for_vllm==1.0",
        ),
        (None, "py3-none-any", None, "no backend runs on this image"),
    ],
)
def test_the_notebook_takes_the_backend_that_driver_and_python_allow(
    version: str | None, tag: str, chosen: str | None, said: str, tmp_path: Path
) -> None:
    wheels, path = tmp_path / "input" / "judge" / "wheels", tmp_path / "bin"
    path.mkdir()
    wheels.mkdir(parents=True)
    for name in ("for_vllm", "judge_distillation", "for_transformers"):
        wheel(wheels, name, tag if name == "for_vllm" else "py3-none-any")
    for backend in ("vllm", "transformers"):
        (wheels.parent / f"requirements-{backend}.txt").write_text(f"for_{backend}==1.0\n")
    if version is not None:
        (path / "nvidia-smi").write_text(f"#!/bin/sh\necho {version}\necho {version}\n")
        (path / "nvidia-smi").chmod(0o755)
    (tmp_path / "input" / COMPETITION).mkdir()
    (tmp_path / "input" / COMPETITION / "test.csv").touch()
    cells = {cell["id"]: "".join(cell["source"]) for cell in json.loads(TEMPLATE.read_text())["cells"]}
    script = "\n".join([cells["parameters"], cells["find"], cells["install"], "print(*OVERRIDES)"])
    script = script.replace("/kaggle/", f"{tmp_path}/").replace(
        '"--no-deps"', f'"--no-deps", "--target={tmp_path}/site"'
    )
    environment = {**os.environ, "PATH": f"{path}:/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert said in done.stdout + done.stderr, done.stdout + done.stderr
    assert (done.returncode == 0) == (chosen is not None)
    installed = {path.name.split("-")[0] for path in (tmp_path / "site").glob("*.dist-info")}
    if chosen is not None:
        assert done.stdout.splitlines()[-1] == f"scorer@scorers.exported={chosen}"
        assert installed == {f"for_{chosen}"} | ({"judge_distillation"} if chosen == "vllm" else set())


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_plugin_s_wheel_is_taken_by_each_python(bundle: Path, python: str, tmp_path: Path) -> None:
    wheels = bundle / "dataset" / "wheels"
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--target", str(tmp_path), "--find-links", str(wheels)]
    subprocess.run([*command, "judge-distillation"], check=True, capture_output=True, timeout=120)
    assert (tmp_path / "judge_vllm_plugin.py").exists()


def test_names_and_overrides_are_the_notebooks() -> None:
    assert slug_of("judge-demo,loss=wsdm3/x") == "judge-demo-loss-wsdm3-x"
    assert len(slug_of("judge-" + "gemma9b,model.lora.rank=64," * 9)) <= LONGEST_SLUG
    given = [
        "+exp=gemma9b",
        "output=x",
        "predict.model=y",
        "predict.second_opinions=0.5",
        "canaries.on_failure=warn",
        "check=z",
        "scorer@scorers.exported=transformers",
        "scorers.exported.load_in_8bit=true",
    ]
    kept = [
        "+exp=gemma9b",
        "predict.second_opinions=0.5",
        "canaries.on_failure=warn",
        "scorers.exported.load_in_8bit=true",
    ]
    assert notebook_overrides(given) == kept
    assert chooses_scorer(given) and chooses_scorer(given[-1:]) and not chooses_scorer(given[:-2])


def test_a_backend_that_an_experiment_s_keys_do_not_fit_is_not_offered() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        assert composes(["+exp=smoke"], "transformers")
        assert not composes(["+exp=smoke", "+scorers.exported.engine_args={max_num_seqs: 64}"], "transformers")
