"""Runs a function in its own process with a limit: one that aborts, hangs or runs out of memory ends alone."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from core.json_files import write_json
from gpu_check.bare import stand_in
from gpu_check.results import Failed, Figures, Skip

PRELOADED = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes")  # where a CPU runs tiny steps one by one
ENVIRONMENT = {  # nothing is looked up or reported
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore:resource_tracker",  # of semaphores, where a step's process was ended
}
Status = Literal["PASS", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Answer:
    """What a function returned, or how its process ended. `late`: it was ended at its limit."""

    status: Status
    reason: str = ""
    figures: Figures | None = None
    late: bool = False


class Processes:
    """Starts a function in a process: a fresh one on a GPU, on a CPU one forked where the libraries are loaded."""

    def __init__(self, dry: bool):
        os.environ |= ENVIRONMENT | ({"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if dry else {})
        self.context: Any = multiprocessing.get_context("forkserver" if dry else "spawn")
        if dry:
            self.context.set_forkserver_preload([name for name in PRELOADED if find_spec(name)])

    def run(self, function: str, arguments: dict[str, Any], limit_s: float, log: Path) -> Answer:
        """Run `function` (module:name) with a scratch folder and `arguments`. Its output goes to `log`."""
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
                return Answer(**json.loads(answer.read_text()))
        why = f"took longer than {limit_s:.0f} s" if late else ending(process.exitcode)
        return Answer("FAIL", f"{why}; {last_line(log)}", late=late)


def perform(function: str, arguments: dict[str, Any], scratch: str, answer: Path, log: Path) -> None:
    """The process: run the function and write its answer."""
    os.setsid()  # a group of its own, which can be ended as a whole
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    stand_in()
    try:
        module, _, name = function.partition(":")
        outcome = Answer("PASS", figures=getattr(import_module(module), name)(Path(scratch), **arguments))
    except Skip as reason:
        outcome = Answer("SKIP", str(reason))
    except Failed as reason:
        traceback.print_exc()
        outcome = Answer("FAIL", first_line(reason))
    except Exception as error:
        traceback.print_exc()
        outcome = Answer("FAIL", f"{type(error).__name__}: {first_line(error)}")
    write_json(answer, asdict(outcome))
    sys.stdout.flush()
    os._exit(0)  # whatever threads or engines are left


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def ending(code: int | None) -> str:
    """How a process ended that left no answer."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with exit code {code} and no answer"


def last_line(log: Path) -> str:
    """The last line of the output, and where all of it is."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"last output: {last[:160]}, all of it in {log}"
