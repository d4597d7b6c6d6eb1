"""Running the entry points in tests, as users do."""

import gc
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.engines import fork_engines

ROOT = Path(__file__).resolve().parent.parent
# Of this process alone: its place in a training, and its service of wandb, which takes no run twice.
OWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "WANDB_SERVICE")
STAGES = ["distill.student", "distill.teacher", "core.store.targets", "students.training.run", "students.trained"]
LIBRARIES = ["deepspeed", "peft", "transformers", "teachers.scorers.transformers"]
OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


def own_process(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """`target(*arguments)`, started in a process that has imported everything already, which takes longest."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    process = importing_server().Process(target=_with_environment, args=(environment, target, *arguments))
    process.start()
    return process


def importing_server() -> ForkServerContext:
    """A process that has imported what stages do, and forks one for each that is asked for.

    They are forked from there, not from here: polars' threads would be missing in the child.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*STAGES, *LIBRARIES])
    with patch.dict(os.environ, OFFLINE):  # the hub's library reads it when it is imported
        forkserver.ensure_running()
    return context


def _with_environment(environment: Mapping[str, str], target: Callable[..., Any], *arguments: Any) -> None:
    _replace_environment({**environment, **OFFLINE})
    target(*arguments)


def _replace_environment(environment: Mapping[str, str]) -> None:
    """Instead of the server's, which is that of the test for which it was started."""
    os.environ.clear()
    os.environ.update(environment)
    fork_engines()
    gc.freeze()  # what the server has imported


def start_command(
    module: str, *arguments: str, stdout: Path, stderr: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """`python -m module arguments` from the repository's root, printing into files.

    It is a process of its own as any command is, but has imported everything already.
    """
    chosen = {**os.environ, **OFFLINE, **(environment or {})}
    process = importing_server().Process(target=_as_main, args=(module, arguments, chosen, stdout, stderr))
    process.start()
    return process


def _as_main(module: str, arguments: Sequence[str], environment: Mapping[str, str], *output: Path) -> None:
    """What `python -m module arguments` does once it has started."""
    for stream, path in zip((sys.stdout, sys.stderr), output, strict=True):
        stream.flush()  # what the server has printed
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    _replace_environment(environment)
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_command(
    module: str, *arguments: str, launcher: tuple[str, ...] = (), timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """A command that has ended, as `start_command` starts it; output captured, nothing raised.

    With a `launcher`, what `python` is given before `module`, it imports for itself.
    """
    command = [sys.executable, *(launcher or ("-m",)), module, *arguments]
    if launcher:
        environment = os.environ | OFFLINE
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "stdout"), Path(folder, "stderr")
        process = start_command(module, *arguments, stdout=output[0], stderr=output[1])
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout, *(path.read_bytes() for path in output))
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in output))


def succeeds(module: str, *arguments: str, **options: object) -> str:
    """Run a command that must succeed; what it printed on both streams."""
    done = run_command(module, *arguments, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, f"{module} {arguments}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


def refuses(module: str, *arguments: str) -> str:
    """Run a command that must refuse its input: exit code 2, one message, no traceback; the message."""
    done = run_command(module, *arguments)
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr and done.stderr.count("error: ") == 1, done.stderr
    return done.stderr[done.stderr.index("error: ") :]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
