"""A Kaggle notebook that predicts without internet, and the data set that it reads, from a finished export.

The bundle is two folders for Kaggle's API. `dataset` holds the model, this code, this project's own wheel, and for each
backend the list of wheels to download. `notebook` holds the notebook.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from core.errors import UserError
from core.folders import new_folder
from core.json_files import write_json
from deploy.kaggle.runtimes import DRIVERS, requirements_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("conf", "core", "teachers", "students", "eval", "deploy", "distill")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "demo")
FOLDERS = ("dataset", "notebook")  # of a bundle
TEMPLATE = Path(__file__).parent / "notebook.ipynb"
COMPETITION = "lmsys-chatbot-arena"
BUDGET = ["predict.devices=2", "predict.minutes=500"]  # two T4s; nine hours but for what installing takes
USERNAME = "INSERT_USERNAME_HERE"  # Kaggle's client spells it so where a name is to be filled in
LONGEST_SLUG = 50


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise `UserError` where a bundle would replace what it may not."""
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"output={folder} exists already: choose another, or replace it with overwrite=true")
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= set(FOLDERS):
        raise UserError(f"output={folder} is no bundle that this command wrote: choose another, or remove it")


def write_bundle(folder: Path, model: Path, name: str, overrides: Iterable[str], backends: Iterable[str]) -> None:
    """Write the bundle of exported judge `model`, called `name`.

    `overrides` are those of the notebook's own command. The owner is KAGGLE_USERNAME, which Kaggle's client reads, too.
    """
    slug, owner = slug_of(f"judge-{name}"), os.environ.get("KAGGLE_USERNAME", USERNAME)
    with new_folder(folder) as partial:
        dataset, notebook = (partial / each for each in FOLDERS)
        write_dataset(dataset, model, owner, slug, backends)
        write_notebook(notebook, owner, slug, [*BUDGET, *overrides], backends)


def slug_of(name: str) -> str:
    """A name as Kaggle's addresses spell it."""
    return re.sub("[^a-z0-9]+", "-", name.lower())[:LONGEST_SLUG].strip("-")


def write_dataset(folder: Path, model: Path, owner: str, slug: str, backends: Iterable[str]) -> None:
    """Write what the notebook finds at /kaggle/input: model/, code/, wheels/, a requirements-*.txt for each backend."""
    shutil.copytree(model, folder / "model")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / "code" / package, ignore=LEFT_OUT)
    for backend in backends:
        (folder / f"requirements-{backend}.txt").write_text(requirements_of(backend))
    build_wheel(folder / "wheels")
    write_json(
        folder / "dataset-metadata.json",
        {"title": slug, "id": f"{owner}/{slug}", "licenses": [{"name": "other"}]},
    )


def build_wheel(folder: Path) -> None:
    """Build this project's own wheel, which holds vLLM's plugin. Needs no network; the source folder stays as it is.

    Raises `UserError` with pip's message where that fails.
    """
    with tempfile.TemporaryDirectory() as copy:
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        shutil.copytree(ROOT / "teachers" / "plugin", Path(copy) / "teachers" / "plugin", ignore=LEFT_OUT)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-q"]
        built = subprocess.run([*command, "-w", str(folder), copy], capture_output=True, text=True, check=False)
    if built.returncode:
        raise UserError(
            f"the project's own wheel could not be built (are setuptools and wheel installed?): {built.stderr[-500:]}"
        )


def write_notebook(folder: Path, owner: str, slug: str, overrides: list[str], backends: Iterable[str]) -> None:
    """Write the template with its parameters filled in, and its metadata for Kaggle."""
    notebook = json.loads(TEMPLATE.read_text())
    (cell,) = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    cell["source"] = [
        f"DATASET = {slug!r}\n",
        f"OVERRIDES = {overrides!r}\n",
        f"DRIVERS = {dict((name, DRIVERS[name]) for name in backends)!r}  # backend: the oldest driver\n",
        cell["source"][-1],  # Kaggle's folders, as the template has them
    ]
    folder.mkdir(parents=True)
    write_json(folder / "notebook.ipynb", notebook)
    title = f"{slug[: LONGEST_SLUG - len('-predict')]}-predict"
    write_json(
        folder / "kernel-metadata.json",
        {
            "id": f"{owner}/{title}",
            "title": title,
            "code_file": "notebook.ipynb",
            "language": "python",
            "kernel_type": "notebook",
            "is_private": True,
            "enable_gpu": True,
            "enable_internet": False,
            "dataset_sources": [f"{owner}/{slug}"],
            "competition_sources": [COMPETITION],
        },
    )
