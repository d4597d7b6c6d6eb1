"""Which implementation of attention trains a judge: one that computes what its serving engine will compute."""

import logging
import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from core.models.architecture import attention_for

log = logging.getLogger(__name__)
# flex_attention is compiled anew for each kind of layer and shape, for training and for evaluation. Beyond torch's own
# limit of 8 kernels it silently falls back to an implementation that stores every score.
KERNELS = 64
COMPILER = (
    "a C compiler and Python's headers (apt-get install gcc python3-dev)"  # for the launchers of Triton's kernels
)


def choose_attention(settings: Any, wanted: str, dtype: torch.dtype) -> str:
    """transformers' name for the attention of a model with its configuration `settings`; `wanted` is engine.attention.

    Raises `UserError` for one that leaves out caps, is not installed, or cannot train on this device.
    """
    served, on_gpu = attention_for(settings) or "sdpa", torch.cuda.is_available()
    if wanted == "sdpa" and served == "eager":
        raise UserError(
            "engine.attention=sdpa leaves out the softcapping of attention scores, which the finished judge is served "
            "with: take auto, or train and serve without, by model.softcapping=false"
        )
    if wanted == "flash_attention_2" and not find_spec("flash_attn"):
        raise UserError("engine.attention=flash_attention_2 needs flash-attn: pip install flash-attn, or take auto")
    if wanted == "flex_attention" and not on_gpu:
        raise UserError(
            "engine.attention=flex_attention trains on GPUs alone (PyTorch has no backward pass for CPUs): take auto"
        )
    chosen = _fastest(served, on_gpu and dtype == torch.bfloat16) if wanted == "auto" else wanted
    if chosen == "flex_attention":
        torch._dynamo.config.recompile_limit = KERNELS
    return chosen


def _fastest(served: str, on_gpu_in_bf16: bool) -> str:
    if not on_gpu_in_bf16:
        return served
    if find_spec("flash_attn"):
        return "flash_attention_2"
    if served != "eager":
        return served
    if triton_compiles():
        return "flex_attention"
    log.warning(
        "engine.attention=auto takes eager, which stores every score: flash-attn is not installed, and flex_attention "
        "needs %s",
        COMPILER,
    )
    return served


def triton_compiles() -> bool:
    """Whether Triton can build its kernels' launchers: with a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()
