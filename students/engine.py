"""DeepSpeed, set up so that the training loop alone decides what a step is.

With `managed_gradient_accumulation` off, `backward` only accumulates and `step` reduces and updates. The engine
averages over ranks, so the loop scales its loss by the number of ranks to get the sum it means.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from distill.config import Config, EngineConfig
from students.model import Judge, training_dtype


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """(rank, number of ranks) of this process, with the communication backend up and taken down again afterwards.

    Under the `deepspeed` or `torchrun` launcher the environment says who we are; without one we are the only rank.
    """
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
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # Compiled at first use, and only for tensor-parallel inference: training needs neither it nor a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", auto_mpi_discovery=False, verbose=False)
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
    finally:
        deepspeed.comm.destroy_process_group()
        if alone:
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
                del os.environ[name]


def open_engine(judge: Judge, config: Config) -> Any:
    """A DeepSpeed engine over `judge`; gradients are clipped at `optimizer.clip`, 0 leaves them as they are."""
    import deepspeed

    optimizer = open_optimizer(judge, config)
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # nominal: micro-batches are cut by tokens
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optimizer.clip,
        "bf16": {"enabled": training_dtype(config.student) == torch.bfloat16},
        "zero_optimization": {
            "stage": config.engine.zero_stage,
            "overlap_comm": False,
            **offloading(config.engine),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=judge, optimizer=optimizer, config=settings)
    return engine


def open_optimizer(judge: Judge, config: Config) -> torch.optim.Optimizer:
    """AdamW over (LoRA matrices, score head), each at its own rate."""
    lora, head = judge.trainable()
    groups = [{"params": lora, "lr": config.optimizer.lr}, {"params": head, "lr": config.optimizer.head_lr}]
    first, second = config.optimizer.betas
    return torch.optim.AdamW(groups, betas=(first, second), weight_decay=config.optimizer.weight_decay)


def offloading(config: EngineConfig) -> dict[str, Any]:
    """DeepSpeed's offload settings. Raises `ValueError` for nvme without a folder, or below ZeRO-3."""
    if config.offload == "none":
        return {}
    if config.offload == "nvme" and (config.nvme_path is None or config.zero_stage < 3):
        raise ValueError(
            f"engine.offload=nvme needs engine.zero_stage=3 (now {config.zero_stage}) and engine.nvme_path "
            f"(now {config.nvme_path}), a folder on a fast local disk"
        )
    device = {"device": config.offload, **({"nvme_path": config.nvme_path} if config.offload == "nvme" else {})}
    return {"offload_optimizer": device, **({"offload_param": device} if config.zero_stage == 3 else {})}


def whole_parameters(judge: Judge, config: Config) -> Any:
    """A context in which the trained parameters are whole on every rank, also where ZeRO-3 has partitioned them."""
    if config.engine.zero_stage < 3:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([p for part in judge.trainable() for p in part])
