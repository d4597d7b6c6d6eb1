"""Collectives meet on a device that their group serves; each rank takes its own GPU before anything else does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import deepspeed
import pytest
import torch
from torch import distributed

from core.errors import UserError
from students.training import ranks
from students.training.checkpoints import StopRequest
from students.training.collectives import barrier, from_first, largest, served_device, take_device, total
from tests.running import free_port
from tests.students.training.gpus import PretendedGpus


@contextmanager
def group(backend: str) -> Iterator[None]:
    address = f"tcp://127.0.0.1:{free_port()}"
    distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


COLLECTIVES: dict[str, Callable[[], Any]] = {
    "total": lambda: total(torch.ones(3, dtype=torch.float64)),
    "largest": lambda: largest(2),
    "from_first": lambda: from_first(2),
    "barrier": barrier,
    "stop": lambda: StopRequest().anywhere(),
}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_no_cpu_tensor_enters_a_group_that_serves_another_device(name: str) -> None:
    """NCCL's group serves CUDA alone; this one serves `meta` alone, whose tensors a machine without GPUs has, too.

    They have no values: the collective has taken place where only reading its result fails.
    """
    with group("meta:gloo"):
        with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
            distributed.all_reduce(torch.ones(1))
        distributed.all_reduce(torch.ones(1, device="meta"))
        with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
            COLLECTIVES[name]()


def test_the_device_is_one_that_the_group_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    for backend, device in {"gloo": "cpu", "cuda:gloo": "cuda:5", "cpu:gloo,cuda:gloo": "cpu"}.items():
        with group(backend):
            assert served_device() == torch.device(device), backend


class TestDevice:
    def test_it_is_taken_before_anything_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpus = PretendedGpus(monkeypatch)
        with ranks.all_ranks():
            assert gpus.events == ["current cuda:0"]
        monkeypatch.setenv("LOCAL_RANK", "5")
        with ranks.all_ranks():
            assert gpus.events[1:] == ["current cuda:5"]

    def test_it_is_taken_before_the_group_opens_which_waits_for_hours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Opened(Exception):
            pass

        def open_group(*arguments: Any, **named: Any) -> None:
            gpus.events.append((arguments[0], named["timeout"]))
            raise Opened

        gpus = PretendedGpus(monkeypatch)
        for name, value in {"RANK": "13", "LOCAL_RANK": "5", "WORLD_SIZE": "16"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(deepspeed, "init_distributed", open_group)
        with pytest.raises(Opened), ranks.all_ranks():
            pass
        assert {*gpus.events[:-1]} == {"current cuda:5"}
        backend, patience = gpus.events[-1]
        assert backend == "nccl" and patience >= timedelta(hours=1)

    def test_more_ranks_than_gpus_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpus = PretendedGpus(monkeypatch, count=2)
        monkeypatch.setenv("LOCAL_RANK", "2")
        with pytest.raises(UserError, match=r"LOCAL_RANK=2, and this process sees 2 GPU\(s\).*--num_accelerators"):
            take_device()
        assert not gpus.events

    def test_without_gpus_it_is_the_cpu(self) -> None:
        assert take_device() == torch.device("cpu")
