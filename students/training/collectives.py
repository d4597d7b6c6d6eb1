"""The process group of one training, and every collective of ours, on a device that the group serves.

NCCL serves GPUs alone: a CPU tensor in a collective ends the training. So nothing else here calls `torch.distributed`.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from core.errors import UserError

T = TypeVar("T")
# How long a rank waits for the others. They wait for the slowest to load 140 GB over a network or round them to 4 bits,
# which takes longer than NCCL's own 10 minutes. The launcher sees at once that a rank has died.
PATIENCE = timedelta(hours=3)


def take_device() -> torch.device:
    """The device of this process, which becomes the current one: the GPU of its local rank, or the CPU.

    Call it before anything is put on a GPU: without it, every rank's current GPU is the first one.
    Raises `UserError` where a launcher started more ranks than there are GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= gpus:
        raise UserError(
            f"LOCAL_RANK={local}, and this process sees {gpus} GPU(s) "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')}): start as many ranks on a node as it "
            "has GPUs (--num_accelerators), and let each rank see all of them"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """(rank, number of ranks) of this process, with the communication backend up and taken down again afterwards.

    Under the `deepspeed` or `torchrun` launcher the environment says who we are; without one we are the only rank.
    Within a group that is up already, nothing happens.
    """
    if distributed.is_initialized():
        yield rank(), world()
        return
    alone = "RANK" not in os.environ
    if alone:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    on_gpu = take_device().type == "cuda"
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # Compiled at first use, and only for tensor-parallel inference: training needs neither it nor a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if on_gpu else "gloo"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=PATIENCE)
    try:
        yield rank(), world()
    finally:
        deepspeed.comm.destroy_process_group()
        if alone:
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
                del os.environ[name]


def rank() -> int:
    return distributed.get_rank()


def world() -> int:
    """The number of ranks."""
    return distributed.get_world_size()


def several() -> bool:
    """Whether a group is up that has other ranks."""
    return distributed.is_initialized() and world() > 1


def served_device() -> torch.device:
    """The CPU where the group serves it, else the current device of the kind that it serves."""
    kinds = [served.partition(":")[0] for served in distributed.get_backend_config().split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.cuda.current_device()) if kinds[0] == "cuda" else torch.device(kinds[0])


def total(own: torch.Tensor) -> torch.Tensor:
    """The sum of `own` over all ranks, on the device of `own`, which stays as it is."""
    shared = own.to(served_device(), copy=True)
    distributed.all_reduce(shared)
    return shared.to(own.device)


def largest(own: int) -> int:
    """The largest of all ranks' numbers."""
    shared = torch.tensor(own, device=served_device())
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)


def from_first(own: int) -> int:
    """The first rank's number, on every rank."""
    shared = torch.tensor(own, device=served_device())
    distributed.broadcast(shared, 0)
    return int(shared)


def barrier() -> None:
    """Returns once all ranks have called it."""
    largest(0)  # reading a number waits for it, where NCCL only queues its collectives


def gathered(own: T) -> list[T | None]:
    """All ranks' values, by rank; they travel pickled, on a device that torch chooses by the same rule."""
    values: list[T | None] = [None] * world()
    distributed.all_gather_object(values, own)
    return values
