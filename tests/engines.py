"""Engines of vLLM start in seconds in tests.

vLLM forks its processes, but not on a CPU: there each is a new Python that imports vLLM for itself, half a minute in
all, because a fork lacks the threads of its parent's OpenMP. Tests have one thread each (`tests/conftest.py`), so here
they are forked as elsewhere. A test of how an engine starts or ends starts it `with spawned()`, as it is for users.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any
from unittest.mock import patch

SWITCH = "TESTS_FORK_ENGINES"  # in the environment of this process and of those that it starts through `tests.running`
get_context: Any = multiprocessing.get_context


def fork_engines() -> None:
    """Have vLLM fork what it starts in this process, while the environment has the switch."""
    multiprocessing.get_context = forking_for_vllm


@contextmanager
def spawned() -> Iterator[None]:
    """Within, engines are spawned, also those of processes that are started within."""
    with patch.dict(os.environ):
        os.environ.pop(SWITCH, None)
        yield


def forking_for_vllm(method: str | None = None) -> BaseContext:
    asked_by_vllm = sys._getframe(1).f_globals.get("__name__") == "vllm.utils.system_utils"
    found: BaseContext = get_context("fork" if asked_by_vllm and SWITCH in os.environ and can_fork() else method)
    return found


def can_fork() -> bool:
    """Not within a group of ranks, which the engine would take for its own, nor where the kernel refuses to copy a
    process that tests have made large.
    """
    from torch import distributed

    if distributed.is_initialized():
        return False
    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True
