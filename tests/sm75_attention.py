"""Compile vLLM's attention kernel for a T4, without one: python tests/sm75_attention.py prints bytes of shared memory.

For a process of its own, in which `vllm` and `triton` are those for GPUs. vLLM itself chooses tiles and constants: its
own function is called with a Gemma-2's shapes, and where it would launch, Triton compiles instead.
"""

import inspect
import json
import os
from collections.abc import Callable
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # vLLM then keeps Triton without a driver
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vllm.v1.attention.ops import triton_unified_attention as attention

T4 = GPUTarget("cuda", 75, 32)
HEADS, KV_HEADS, HEAD_DIM, BLOCK, SOFTCAP = 16, 8, 256, 16, 50.0  # Gemma-2 9B
TYPES = {torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}


class Compiled(Exception):
    """Thrown instead of a launch."""


def kind_of(value: Any) -> str:
    """Triton's name for the type of an argument."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


class Instead:
    """Stands where the kernel was: `kernel[grid](...)` compiles it for a T4, and throws what it takes."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.launch

    def launch(self, **given: Any) -> None:
        parameters = inspect.signature(self.kernel.fn).parameters
        values = {name: given.get(name, parameter.default) for name, parameter in parameters.items()}
        constant = {p.name for p in self.kernel.params if p.is_constexpr}
        constants = {name: value for name, value in values.items() if name in constant or value is None}
        signature = {name: "constexpr" if name in constants else kind_of(value) for name, value in values.items()}
        source = ASTSource(self.kernel, signature, constants)
        found = triton.compile(source, target=T4)
        raise Compiled(found.metadata.shared)


def shared_memory(queries: int, window: int) -> int:
    """Bytes for one sequence, of which so many tokens are new, behind 2048 in the cache; `window` 0: all are seen."""
    half, whole = {"dtype": torch.float16}, {"dtype": torch.int32}
    blocks = 2048 // BLOCK
    cache = torch.zeros(blocks, BLOCK, KV_HEADS, HEAD_DIM, **half)
    segments = 16
    room = {
        "softmax_segm_output": torch.zeros(64, HEADS, segments, HEAD_DIM),
        "softmax_segm_max": torch.zeros(64, HEADS, segments),
        "softmax_segm_expsum": torch.zeros(64, HEADS, segments),
    }
    try:
        attention.unified_attention(
            q=torch.zeros(queries, HEADS, HEAD_DIM, **half),
            k=cache,
            v=cache,
            out=torch.zeros(queries, HEADS, HEAD_DIM, **half),
            cu_seqlens_q=torch.tensor([0, queries], **whole),
            max_seqlen_q=queries,
            seqused_k=torch.tensor([2048], **whole),
            max_seqlen_k=2048,
            softmax_scale=HEAD_DIM**-0.5,
            causal=True,
            window_size=(window - 1, 0),
            block_table=torch.zeros(1, blocks, **whole),
            softcap=SOFTCAP,
            q_descale=None,
            k_descale=None,
            v_descale=None,
            seq_threshold_3D=64,
            num_par_softmax_segments=segments,
            **room,
        )
    except Compiled as compiled:
        return int(compiled.args[0])
    raise AssertionError("vLLM launched nothing")


if __name__ == "__main__":
    attention.kernel_unified_attention = Instead(attention.kernel_unified_attention)
    print(
        json.dumps(
            {f"{queries}, {window}": shared_memory(queries, window) for queries in (2048, 1) for window in (0, 1024)}
        )
    )
