"""Runs steps one after another, each in a process of its own with a limit, and keeps what came of them.

A step that aborts, hangs or runs out of memory ends alone. What has passed is not run again while code, device and
versions are the same: rerun the same command to resume.
"""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from core.artefacts.versions import installed_versions
from core.json_files import write_json
from gpu_check.bare import stand_in
from gpu_check.verdicts import Failed, Figures, Skip, need

ROOT = Path(__file__).resolve().parent.parent
CODE = ("core", "teachers", "students", "distill", "gpu_check", "conf")
PRELOADED = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes")  # where a CPU runs tiny steps one by one
ENVIRONMENT = {  # nothing is looked up or reported
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore:resource_tracker",  # of semaphores, where a step's process was ended
}
KERNELS = ("triton", "flash-attn", "liger-kernel", "bitsandbytes", "torch-optimi", "compressed-tensors")
PROBE_S = 600
PATIENCE = 10  # times a step's limit, in a dry run: a busy CPU is no fault
Status = Literal["PASS", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Step:
    """A check: `function` (module:name) gets a scratch folder, whether the run is dry, and `arguments`.

    It returns its figures, or raises: `Skip`, `Failed`, anything. `needs`: packages; `gpu_only`: why no CPU can run it.
    """

    name: str
    function: str
    limit_s: int
    needs: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    gpu_only: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a step, in a run of this `key`."""

    status: Status
    seconds: float
    reason: str
    figures: Figures
    key: str


@dataclass(frozen=True)
class Machine:
    """What a result depends on: GPUs (or the CPU), environment, versions, and the code by its hash."""

    device: str
    gpus: int
    environment: str
    versions: dict[str, str]
    code: str

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def slug(self) -> str:
        """The name of its results: each environment has its own."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.device} {self.environment}".lower()).strip("-")


class Processes:
    """Starts a function in a process: a fresh one on a GPU, on a CPU one forked where the libraries are loaded."""

    def __init__(self, dry: bool):
        os.environ |= ENVIRONMENT | ({"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if dry else {})
        self.context: Any = multiprocessing.get_context("forkserver" if dry else "spawn")
        if dry:
            self.context.set_forkserver_preload([name for name in PRELOADED if find_spec(name)])

    def run(self, function: str, arguments: dict[str, Any], limit_s: float, log: Path) -> dict[str, Any]:
        """What `function` returned or how it ended: status, reason, figures. Its output goes to `log`."""
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
            answer = Path(scratch, "answer.json")
            process = self.context.Process(target=perform, args=(function, arguments, scratch, answer, log))
            process.start()
            try:
                process.join(max(limit_s, 0.1))
                late = process.is_alive()
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
                process.kill()  # it may have had no time to open its group
                process.join()
            if answer.exists():
                return dict(json.loads(answer.read_text()))
        why = f"took longer than {limit_s:.0f} s" if late else ending(process.exitcode)
        return {"status": "FAIL", "reason": f"{why}; {last_line(log)}", "figures": {}, "late": late}


def perform(function: str, arguments: dict[str, Any], scratch: str, answer: Path, log: Path) -> None:
    """A step's process: run it and write its answer."""
    os.setsid()  # a group of its own, which can be ended as a whole
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    stand_in()
    try:
        module, _, name = function.partition(":")
        figures = getattr(import_module(module), name)(Path(scratch), **arguments)
        found = {"status": "PASS", "reason": "", "figures": figures}
    except Skip as reason:
        found = {"status": "SKIP", "reason": str(reason), "figures": {}}
    except Exception as error:
        traceback.print_exc()
        first = next(iter(str(error).splitlines()), "")
        why = first if isinstance(error, Failed) else f"{type(error).__name__}: {first}"
        found = {"status": "FAIL", "reason": why, "figures": {}}
    write_json(answer, found)
    sys.stdout.flush()
    os._exit(0)  # whatever threads or engines are left


def ending(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with exit code {code} and no answer"


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"last output: {said[:160]}, all of it in {log}"


def probe(scratch: Path, dry: bool) -> Figures:
    """The devices here. In a process of its own: a context on a GPU takes memory."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not names and not dry:
        raise Failed("torch sees no GPU here: DRY=1 runs what a CPU can")
    kinds = " and ".join(dict.fromkeys(names)) or "CPU"
    return {"device": f"{len(names)}x {kinds}" if len(names) > 1 else kinds, "gpus": len(names)}


def machine(processes: Processes, dry: bool, folder: Path) -> Machine:
    """What this is. Raises `Failed` where torch does not run, or sees no GPU and the run is not dry."""
    folder.mkdir(parents=True, exist_ok=True)
    found = processes.run("gpu_check.runner:probe", {"dry": dry}, PROBE_S, folder / "probe.log")
    if found["status"] != "PASS":
        raise Failed(found["reason"])
    files = sorted(path for place in CODE for path in sources(ROOT / place))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    environment = Path(sys.prefix).name  # .venv-student, .venv-teacher: some steps can run in one of them alone
    versions = installed_versions()
    for package in KERNELS:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Machine(**found["figures"], environment=environment, versions=versions, code=digest.hexdigest())


def sources(place: Path) -> Iterable[Path]:
    return [place] if place.is_file() else [path for path in place.rglob("*") if path.suffix in (".py", ".yaml")]


class Record:
    """What came of the steps so far, in a JSON file that is whole at any time."""

    def __init__(self, path: Path, machine: Machine):
        self.path, self.machine = path, machine
        held = json.loads(path.read_text())["steps"] if path.exists() else {}
        self.outcomes = {name: Outcome(**outcome) for name, outcome in held.items()}

    def passed(self, name: str) -> bool:
        """Whether it has passed as this machine and this code are now."""
        found = self.outcomes.get(name)
        return found is not None and (found.status, found.key) == ("PASS", self.machine.key)

    def keep(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        steps = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        write_json(self.path, {"machine": asdict(self.machine), "steps": steps})


def run_all(steps: Sequence[Step], record: Record, processes: Processes, dry: bool, until: float, again: bool) -> None:
    """Run all `steps` that have not passed here yet, or all; none after `until` on the monotonic clock."""
    for step in steps:
        if record.passed(step.name) and not again:
            continue
        began = time.monotonic()
        found = attempt(step, processes, dry, until - began, record.path.with_suffix("") / f"{step.name}.log")
        seconds = round(time.monotonic() - began, 1)
        outcome = Outcome(found["status"], seconds, found["reason"], found["figures"], record.machine.key)
        record.keep(step.name, outcome)
        print(f"{outcome.status}  {step.name}  {seconds:.0f} s  {told(outcome)}", flush=True)


def attempt(step: Step, processes: Processes, dry: bool, left_s: float, log: Path) -> dict[str, Any]:
    """Run a step where it can run, with its own limit or what is left of the time for all."""
    over = {
        "status": "SKIP",
        "reason": "the time for all steps is over: rerun the same command to resume",
        "figures": {},
    }
    try:
        if dry and step.gpu_only:
            raise Skip(step.gpu_only)
        need(*step.needs)
    except Skip as reason:
        return {"status": "SKIP", "reason": str(reason), "figures": {}}
    if left_s <= 0:
        return over
    log.parent.mkdir(parents=True, exist_ok=True)
    limit_s = step.limit_s * (PATIENCE if dry else 1)
    found = processes.run(step.function, {"dry": dry, **step.arguments}, min(limit_s, left_s), log)
    return over if found.get("late") and left_s < limit_s else found


def table(steps: Sequence[Step], record: Record) -> str:
    """The outcomes of `steps` in Markdown."""
    rows = ["| step | result | s | |", "|---|---|---|---|"]
    for step in steps:
        outcome = record.outcomes[step.name]
        rows.append(f"| {step.name} | {outcome.status} | {outcome.seconds:.0f} | {told(outcome)} |")
    return "\n".join(rows)


def told(outcome: Outcome) -> str:
    """The reason, or the figures, on one line."""
    figures = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in outcome.figures.items())
    return (outcome.reason or ", ".join(figures)).replace("|", "/").replace("\n", " ")
