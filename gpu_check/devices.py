"""The devices, and every collective that training and DeepSpeed's ZeRO stages use.

DeepSpeed calls `torch.distributed` by itself, so its collectives are called here as it does.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from core.errors import OtherRankError, UserError
from gpu_check.bare import stand_in
from gpu_check.results import LOGITS, Failed, Figures, Skip, close, name_of, relative

TYPES = (torch.int64, torch.float32, torch.float64, torch.bfloat16)
SUM = distributed.ReduceOp.SUM


def devices(folder: Path, dry: bool) -> Figures:
    """Each device multiplies matrices as the CPU does in fp32, in each type that it computes in."""
    places = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]
    size = 64 if dry else 4096
    a, b = (torch.randn(size, size, generator=torch.Generator().manual_seed(i)) for i in range(2))
    exact, off, free = a @ b, {}, []
    for place in places:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            found = a.to(place, dtype) @ b.to(place, dtype)
            off[f"{place} in {name_of(dtype)}"] = relative(found, exact)
        if place.type == "cuda":
            free.append("{:.1f} of {:.1f} GB".format(*(n / 1e9 for n in torch.cuda.mem_get_info(place))))
    close(off, LOGITS["bf16"])
    if not torch.cuda.is_available():
        return {"multiplied": len(off)}
    capabilities = sorted({"{}.{}".format(*torch.cuda.get_device_capability(place)) for place in places})
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {"free": "; ".join(free), "capability": " ".join(capabilities), "bf16": bf16}


def collectives(folder: Path, dry: bool, everywhere: bool) -> Figures:
    """On one rank, or on one for each GPU (dry: on two of the CPU)."""
    ranks = (2 if dry else torch.cuda.device_count()) if everywhere else 1
    if everywhere and ranks == 1:
        raise Skip("there is one GPU here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if ranks == 1:
        as_rank(0, 1, port)
    else:
        context: Any = get_context("fork" if dry else "spawn")
        processes = [context.Process(target=as_rank, args=(rank, ranks, port)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if codes := [process.exitcode for process in processes if process.exitcode]:
            raise Failed(f"{len(codes)} of {ranks} ranks ended with {codes}")
    return {"ranks": ranks, "backend": "nccl" if torch.cuda.is_available() else "gloo"}


def as_rank(rank: int, ranks: int, port: int) -> None:
    """One rank's process. Raises `Failed` where a collective gives anything but what it should."""
    stand_in()
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()}
    with group():
        if torch.cuda.is_available() and torch.cuda.current_device() != rank:
            raise Failed(f"rank {rank} works on GPU {torch.cuda.current_device()}")
        of_deepspeed(rank, ranks)
        ours(rank, ranks)


@contextmanager
def group() -> Iterator[None]:
    """The training's own process group, or where DeepSpeed is not installed PyTorch's."""
    if find_spec("deepspeed"):
        from students.training.collectives import process_group

        with process_group():
            yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def of_deepspeed(rank: int, ranks: int) -> None:
    """What ZeRO calls: tensors of the device are reduced, sent, gathered and scattered."""
    place = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    total = ranks * (ranks + 1) / 2
    for dtype in TYPES:
        own = torch.full((2,), rank + 1, dtype=dtype, device=place)
        distributed.all_reduce(summed := own.clone(), SUM)
        distributed.broadcast(first := own.clone(), 0)
        distributed.all_gather_into_tensor(gathered := own.repeat(ranks), own)
        distributed.reduce_scatter_tensor(scattered := own.clone(), own.repeat(ranks), SUM)
        results = {
            "all_reduce sum": (summed, [total] * 2),
            "broadcast": (first, [1.0] * 2),
            "all_gather": (gathered, [i + 1.0 for i in range(ranks) for _ in range(2)]),
            "reduce_scatter": (scattered, [total] * 2),
        }
        for name, (found, expected) in results.items():
            if found.tolist() != expected:
                raise Failed(f"{name} of {dtype} on {ranks} ranks gave {found.tolist()}, expected {expected}")


def ours(rank: int, ranks: int) -> None:
    """What the training calls: sums of CPU tensors, numbers, values; and how ranks agree on the error of one."""
    from students.training import collectives
    from students.training.ranks import fail_together, same_on_all_ranks

    results = {
        "total": (collectives.total(torch.tensor([rank + 1.0], dtype=torch.float64)).item(), ranks * (ranks + 1) / 2),
        "largest": (collectives.largest(rank), ranks - 1),
        "from_first": (collectives.from_first(rank), 0),
        "gathered": (collectives.gathered(rank), list(range(ranks))),
    }
    for name, (found, expected) in results.items():
        if found != expected:
            raise Failed(f"{name} on {ranks} ranks gave {found}, expected {expected}")
    collectives.barrier()
    same_on_all_ranks("one value", "the same")
    last = rank == ranks - 1
    try:
        with fail_together():
            if last:
                raise UserError("planned")
    except OtherRankError:
        ended = "another's error"
    except UserError:
        ended = "its own error"
    else:
        ended = "nothing"
    if ended != ("its own error" if last else "another's error"):
        raise Failed(f"rank {rank} met {ended} where the last of {ranks} ranks failed")
