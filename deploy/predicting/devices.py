"""One process a GPU, side by side: started with what each may see, ended together, and none outlives the command."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from core import screen
from core.errors import UserError
from core.exits import surroundings_explained
from core.scoring import given_threads
from core.screen import quietly
from teachers.interrupts import STOPPED, Interrupt
from teachers.scorers.backends import backend_of
from teachers.scorers.config import ScorerConfig

log = logging.getLogger(__name__)
REFUSED = 2  # the exit code of a process that said what is wrong
WELL = (0, STOPPED, -signal.SIGTERM)  # the last, where it was asked to stop before it could work
POLL_SECONDS = 0.2


def count_devices(wanted: int | None, scorer: ScorerConfig) -> int:
    """How many processes to run: `wanted`, else one for each GPU, or for as many as an engine spans.

    Raises `UserError` for more than there are GPUs; a machine without one runs any number.
    """
    import torch

    gpus, span = torch.cuda.device_count(), scorer.gpus_spanned
    engines = gpus // span
    if wanted is None:
        return max(1, engines) if backend_of(scorer).in_process else 1
    if gpus and wanted > engines:
        raise UserError(f"predict.devices={wanted}: there are {gpus} GPUs, {span} to an engine")
    return wanted


def side_by_side(work: Callable[..., None], count: int, span: int, *arguments: Any) -> None:
    """Run `work(number, count, *arguments)` for each number below `count`, each in a process with `span` GPUs.

    A single one runs in this process. Ctrl-C and SIGTERM are passed on, and end this process like the others, with the
    code of an interruption. Raises `UserError` once one of them has failed; the rest then finish what they are
    working on.
    """
    if count == 1:
        work(0, 1, *arguments)
        return
    processes = []
    for number in range(count):
        with environment(environment_of(number, count, span)), screen.restored():
            process = multiprocessing.get_context("spawn").Process(
                target=run_alone, args=(screen.log_file(), work, number, count, *arguments), name=f"device {number}"
            )
            process.start()
        processes.append(process)
    try:
        interrupted = wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
    failed = [f"{p.name} (exit code {p.exitcode})" for p in processes if p.exitcode not in WELL]
    if failed:
        raise UserError(
            f"{', '.join(failed)} ended early, its own message is above. What is judged stays: rerun the same command "
            "to resume"
        )
    if interrupted:
        sys.exit(STOPPED)


def wait(processes: Sequence[BaseProcess]) -> bool:
    """Wait for all; whether they were asked to stop. The end of one by a failure asks the others to stop, too."""
    asked = False
    with Interrupt() as interrupt:
        while running := [process for process in processes if process.exitcode is None]:
            connection.wait([process.sentinel for process in running], timeout=POLL_SECONDS)
            if not asked and (interrupt.asked or any(process.exitcode for process in processes)):
                asked = True
                for process in running:
                    process.terminate()
        return interrupt.asked


def run_alone(libraries: Path | None, work: Callable[..., None], number: int, count: int, *arguments: Any) -> None:
    """`work` in a process that was started for it: deaf to the terminal's Ctrl-C, which the command passes on.

    `libraries`: the log of what they say.
    """
    os.setpgrp()
    threading.Thread(target=end_with_parent, name="parent-watch", daemon=True).start()
    form = f"%(asctime)s device {number}: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", handlers=[screen.ScreenHandler()])
    try:
        with quietly(libraries) if libraries else nullcontext(), surroundings_explained():
            work(number, count, *arguments)
    except UserError as problem:
        log.error("%s", problem)
        sys.exit(REFUSED)


def end_with_parent() -> None:
    """End this process, engine and all, when the command is killed: it would hold the GPU and the locks."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def environment_of(number: int, count: int, span: int) -> dict[str, str]:
    """What process `number` of `count` sees: its GPUs, of those visible here, and its part of the CPU's cores."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = visible.split(",") if visible else [str(gpu) for gpu in range(count * span)]
    own = gpus[number * span : (number + 1) * span]
    threads = given_threads() or max(1, len(os.sched_getaffinity(0)) // count)
    return {"CUDA_VISIBLE_DEVICES": ",".join(own), "OMP_NUM_THREADS": str(threads), "TQDM_POSITION": str(number)}


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """`values` in the environment of what is started within: libraries read it while they are imported."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
