"""Turn a finished export into a Kaggle notebook that needs no internet: python -m distill.kaggle

Writes two folders for Kaggle's API, as deploy/kaggle/README.md tells: `dataset` holds the model, this code, for each
backend the list of wheels to be fetched, and this project's own wheel; `notebook` the notebook that predicts with them.
`predict.*` overrides given here are the notebook's. Slugs are of KAGGLE_USERNAME, the variable that Kaggle's own client
reads.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from core.errors import UserError
from core.exported import GGUF_BACKBONE
from core.json_files import write_json
from distill.config import Config
from teachers.scorers.config import through_transformers

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("conf", "core", "teachers", "students", "eval", "deploy", "distill")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "demo")
PARTS = ("dataset", "notebook")  # of a bundle
REQUIREMENTS = ROOT / "requirements" / "gpu-teacher.txt"
# What predicting through transformers imports and Kaggle's image lacks or has too old, to be taken from `REQUIREMENTS`.
# torch, whose CUDA the driver must know, and the rest are the image's own.
BESIDE_TORCH = (
    *("accelerate", "bitsandbytes", "click", "compressed-tensors", "hf-xet", "huggingface-hub", "hydra-core", "loguru"),
    *("omegaconf", "polars", "polars-runtime-32", "pyarrow", "rich", "safetensors", "tokenizers", "transformers"),
)
DRIVERS = {"vllm": 580, "transformers": 525}  # the least: vLLM 0.33 is built for CUDA 13, Kaggle's torch for CUDA 12
TEMPLATE = Path(__file__).parent / "notebook.ipynb"
COMPETITION = "lmsys-chatbot-arena"
BUDGET = ["predict.devices=2", "predict.minutes=500"]  # two T4s; nine hours but for what installing takes
USERNAME = "INSERT_USERNAME_HERE"  # as Kaggle's client spells what is left to fill in
LONGEST_SLUG = 50


def write_bundle(config: Config) -> None:
    from core.exported import open_exported
    from core.folders import new_folder
    from deploy.predicting.run import model_folder

    if config.output is None:
        raise UserError("output=null: name the folder to write, as in output=kaggle-bundle")
    folder = Path(config.output)
    if folder.exists() and not config.overwrite:
        raise UserError(f"output={folder} is there already: choose another, or replace it with overwrite=true")
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= set(PARTS)):
        raise UserError(f"output={folder} is no bundle that this command wrote: choose another, or remove it")
    judge = open_exported(model_folder(config))
    check_runs_there(judge.folder)
    overrides = [*BUDGET, *own_overrides(HydraConfig.get().overrides.task)]
    backends = backends_for(judge.folder, config, overrides)
    slug, owner = slug_of(f"judge-{config.run}"), os.environ.get("KAGGLE_USERNAME", USERNAME)
    with new_folder(folder) as partial:
        dataset, notebook = (partial / name for name in PARTS)
        write_dataset(dataset, judge.folder, owner, slug, backends)
        write_notebook(notebook, owner, slug, overrides, backends)
    log.info("%s is written, for %s; fetch the wheels and upload it as deploy/kaggle/README.md tells", folder, backends)


def backends_for(export: Path, config: Config, overrides: Iterable[str]) -> list[str]:
    """The backends among which the notebook chooses, best first: the one that was asked for, or else all that T4s can.

    transformers has no kernels for quantised weights: it makes them fp16, which may be more than a T4 has.
    """
    from core.models.memory import GB
    from core.models.shapes import meta_classifier, shape_of

    backend = config.scorers.exported.backend
    asked = backend != "vllm" or any(override.startswith("scorer@scorers.exported=") for override in overrides)
    if backend not in DRIVERS:
        raise UserError(f"scorer@scorers.exported={backend}: the notebook can have {' or '.join(DRIVERS)}")
    weights = 2 * shape_of(meta_classifier(str(export), config.root)).parameters / GB
    fits = through_transformers(config.scorers.exported).load_in_8bit or weights < config.t4.memory_gb
    if not fits and not (asked and backend == "vllm"):
        log.warning(
            "through transformers a T4 would need %.1f GB for fp16 weights: see deploy/kaggle/README.md", weights
        )
    if asked:
        return [backend]
    return [name for name in DRIVERS if name == backend or fits]


def check_runs_there(export: Path) -> None:
    """Raise `UserError` for an export that T4s cannot run, or that nothing in `REQUIREMENTS` reads."""
    if (export / "t4.json").exists():
        broken = [f["detail"] for f in json.loads((export / "t4.json").read_text()) if f["ok"] is False]
        if broken:
            raise UserError(f"{export} does not run on T4s: {'; '.join(broken)}")
    if (export / GGUF_BACKBONE).exists():
        raise UserError(f"{export} needs llama.cpp, which the notebook does not have: export in another format")


def slug_of(name: str) -> str:
    """A name as Kaggle's addresses spell it."""
    return re.sub("[^a-z0-9]+", "-", name.lower())[:LONGEST_SLUG].strip("-")


def own_overrides(overrides: Iterable[str]) -> list[str]:
    """Those that the notebook's own command repeats: the experiment, how to predict but for the model's place, and
    whether to go on where T4s compute something else.
    """
    named = {override.lstrip("+").split("=")[0]: override for override in overrides}
    own = ("exp", "canaries")
    return [o for key, o in named.items() if key in own or (key.startswith("predict.") and key != "predict.model")]


def requirements_of(backend: str) -> str:
    """The wheels that the backend takes beside Kaggle's image, one pin a line."""
    lines = REQUIREMENTS.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if backend == "vllm" or line.split("==")[0] in BESIDE_TORCH)


def write_dataset(folder: Path, model: Path, owner: str, slug: str, backends: Iterable[str]) -> None:
    """What the notebook finds at /kaggle/input: model/, code/, wheels/ and a requirements-*.txt for each backend."""
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
    """This project's own wheel, which holds vLLM's plugin. Needs no index; the source folder stays as it is.

    Raises `UserError` with what pip says where it cannot be built.
    """
    with tempfile.TemporaryDirectory() as copy:
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        shutil.copytree(ROOT / "teachers" / "plugin", Path(copy) / "teachers" / "plugin", ignore=LEFT_OUT)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-q"]
        built = subprocess.run([*command, "-w", str(folder), copy], capture_output=True, text=True, check=False)
    if built.returncode:
        raise UserError(
            f"the project's own wheel cannot be built (pip install setuptools wheel?): {built.stderr[-500:]}"
        )


def write_notebook(folder: Path, owner: str, slug: str, overrides: list[str], backends: Iterable[str]) -> None:
    """The template with its parameters filled in, and what Kaggle wants to know of it."""
    notebook = json.loads(TEMPLATE.read_text())
    (cell,) = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    cell["source"] = [
        f"DATASET = {slug!r}\n",
        f"OVERRIDES = {overrides!r}\n",
        f"DRIVERS = {dict((name, DRIVERS[name]) for name in backends)!r}  # backend: the oldest driver\n",
        'INPUT, WORKING = "/kaggle/input", "/kaggle/working"',
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
