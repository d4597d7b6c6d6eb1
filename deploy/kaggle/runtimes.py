"""Which backends can run an export on Kaggle's T4s, and the wheels that each needs beside Kaggle's image."""

import logging
from pathlib import Path

from core.errors import UserError
from students.export.formats import format_in
from students.export.t4.findings import read_findings
from teachers.scorers.config import ScorerConfig, TransformersConfig

log = logging.getLogger(__name__)
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements" / "gpu-teacher.txt"
# The oldest driver of each, best backend first: vLLM 0.33 is built for CUDA 13, Kaggle's torch for CUDA 12.
DRIVERS = {"vllm": 580, "transformers": 525}
# What predicting through transformers imports and Kaggle's image lacks or has too old; pinned in `REQUIREMENTS`. The
# image's own torch stays: its CUDA must fit the driver.
BESIDE_TORCH = (
    *("accelerate", "bitsandbytes", "click", "compressed-tensors", "hf-xet", "huggingface-hub", "hydra-core", "loguru"),
    *("omegaconf", "polars", "polars-runtime-32", "pyarrow", "rich", "safetensors", "tokenizers", "transformers"),
)


def backends_for(export: Path, scorer: ScorerConfig, chosen: bool, memory_gb: float) -> list[str]:
    """The backends that the notebook chooses from, best first.

    Where the user has `chosen` the scorer, or the experiment has another than vLLM, that is its backend alone. Else
    transformers stands in for vLLM where its weights fit into `memory_gb`: it has no kernels for quantised ones, so it
    turns them into fp16.
    """
    if scorer.backend not in DRIVERS:
        raise UserError(f"scorer@scorers.exported={scorer.backend}: the notebook can run {' or '.join(DRIVERS)}")
    if chosen and scorer.backend == "vllm":
        return ["vllm"]
    weights = fp16_gb(export)
    fits = weights < memory_gb or (isinstance(scorer, TransformersConfig) and scorer.load_in_8bit)
    if not fits:
        log.warning("transformers would need %.1f GB for fp16 weights on a T4: see deploy/kaggle/README.md", weights)
    if scorer.backend != "vllm":
        return [scorer.backend]
    return ["vllm", "transformers"] if fits else ["vllm"]


def fp16_gb(export: Path) -> float:
    """The weights of an export in fp16, however they are stored."""
    from core.models.memory import GB
    from core.models.shapes import meta_classifier, shape_of

    return 2 * shape_of(meta_classifier(str(export), export.parent)).parameters / GB


def check_runs_on_kaggle(export: Path) -> None:
    """Raise `UserError` for an export that T4s cannot run, or that no package in `REQUIREMENTS` reads."""
    if broken := [finding.detail for finding in read_findings(export) if finding.ok is False]:
        raise UserError(f"{export} does not run on T4s: {'; '.join(broken)}")
    runtimes = format_in(export).runtimes
    if not DRIVERS.keys() & {*runtimes}:
        needed = " or ".join(runtimes)
        raise UserError(f"{export} needs {needed}, which the notebook does not install: export in another format")


def requirements_of(backend: str) -> str:
    """The wheels that a backend needs beside Kaggle's image, one pin a line."""
    lines = REQUIREMENTS.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if backend == "vllm" or line.split("==")[0] in BESIDE_TORCH)
