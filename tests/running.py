"""Running the doors in tests, as users do."""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STAGES = ["distill.student", "distill.teacher", "core.store.targets", "students.training.run", "students.trained"]
LIBRARIES = ["deepspeed", "peft", "transformers", "teachers.scorers.transformers"]


def own_process(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """`target(*arguments)`, started in a process that has imported everything already, which takes longest.

    It is forked from a server, not from here: polars' threads would be missing in the child.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*STAGES, *LIBRARIES])
    process = context.Process(target=_as_no_rank, args=(target, *arguments))
    process.start()
    return process


def _as_no_rank(target: Callable[..., Any], *arguments: Any) -> None:
    for name in RANK:  # the server has the environment in which it was started, perhaps that of a training
        os.environ.pop(name, None)
    target(*arguments)


def run_command(
    module: str, *arguments: str, launcher: tuple[str, ...] = ("-m",), timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments` from the repository's root; output captured, nothing raised."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, *launcher, module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


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
