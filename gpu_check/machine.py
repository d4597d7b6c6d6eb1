"""What a result depends on: devices, environment, versions and code."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core.artefacts.versions import installed_versions
from gpu_check.processes import Processes
from gpu_check.results import Failed, Figures

ROOT = Path(__file__).resolve().parent.parent
CODE = ("core", "teachers", "students", "distill", "gpu_check", "conf")
KERNELS = ("triton", "flash-attn", "liger-kernel", "bitsandbytes", "torch-optimi", "compressed-tensors")
PROBE_S = 600


@dataclass(frozen=True)
class Machine:
    """GPUs (or the CPU), environment, versions, and the code by its hash."""

    device: str
    gpus: int
    environment: str
    versions: dict[str, str]
    code: str

    @property
    def key(self) -> str:
        """Equal where a result counts."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def slug(self) -> str:
        """The name of its results: each environment has its own."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.device} {self.environment}".lower()).strip("-")


def this_machine(processes: Processes, dry: bool, folder: Path) -> Machine:
    """Raises `Failed` where torch does not run, or sees no GPU and the run is not dry."""
    folder.mkdir(parents=True, exist_ok=True)
    answer = processes.run("gpu_check.machine:probe", {"dry": dry}, PROBE_S, folder / "probe.log")
    if answer.status != "PASS" or answer.figures is None:
        raise Failed(answer.reason)
    versions = installed_versions()
    for package in KERNELS:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    environment = Path(sys.prefix).name  # .venv-student, .venv-teacher: some steps can run in one of them alone
    return Machine(**answer.figures, environment=environment, versions=versions, code=code_hash())


def probe(scratch: Path, dry: bool) -> Figures:
    """The devices here. In a process of its own: a context on a GPU takes memory."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not names and not dry:
        raise Failed("torch sees no GPU here: DRY=1 runs what a CPU can")
    kinds = " and ".join(dict.fromkeys(names)) or "CPU"
    return {"device": f"{len(names)}x {kinds}" if len(names) > 1 else kinds, "gpus": len(names)}


def code_hash() -> str:
    """Of all that a step may run."""
    digest = hashlib.sha256()
    for path in sorted(path for place in CODE for path in source_files(ROOT / place)):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def source_files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.suffix in (".py", ".yaml"))
