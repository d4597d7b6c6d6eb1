"""The steps of gpu-check, in the order in which they run: what the rest builds on comes first."""

from gpu_check.runner import Step

FAMILIES = ("llama", "gemma2")
DEEPSPEED = ("peft", "deepspeed", "polars")
COMPILES = "flex attention is compiled, which takes a CPU most of a minute; the tests hold it equal to eager"
GPU_KERNELS = "its kernels are for GPUs"
ENGINE = "an engine takes a CPU a minute to start; tests/teachers/scorers/test_vllm_plugin.py runs it there"


def training(family: str, method: str, zero: int | None, limit_s: int, *needs: str) -> Step:
    """Two optimiser steps against the CPU's, under DeepSpeed's stage `zero` or without DeepSpeed."""
    name = f"train-{method}-{family}-{'plain' if zero is None else f'zero{zero}'}"
    limit_s += 120 if family == "gemma2" else 0  # its attention, flex, is compiled first
    return Step(
        name, "gpu_check.training:two_steps", limit_s, needs, {"family": family, "method": method, "zero": zero}
    )


def attending(family: str, kernel: str, implementation: str, gpu_only: str = "", *needs: str) -> Step:
    """A kernel of attention against eager in fp32, padded and padding-free."""
    arguments = {"family": family, "implementation": implementation}
    limit_s = 240 if kernel == "flex" else 90  # it is compiled for each mask and layout
    return Step(f"attention-{kernel}-{family}", "gpu_check.attention:attention", limit_s, needs, arguments, gpu_only)


STEPS = (
    Step("devices", "gpu_check.devices:devices", 60),
    Step("collectives-one-rank", "gpu_check.devices:collectives", 90, arguments={"everywhere": False}),
    Step("collectives-all-gpus", "gpu_check.devices:collectives", 120, arguments={"everywhere": True}),
    *(training(family, "lora", None, 150, "peft") for family in FAMILIES),
    *(training(family, "lora", 2, 150, *DEEPSPEED) for family in FAMILIES),
    *(training(family, "qlora", 2, 180, *DEEPSPEED, "bitsandbytes") for family in FAMILIES),
    *(training(f, "full", zero, 180, "deepspeed", "polars", "optimi") for f in FAMILIES for zero in (1, 3)),
    *(attending(family, "eager", "eager") for family in FAMILIES),
    *(attending(family, "flex", "flex_attention", COMPILES) for family in FAMILIES),
    *(attending(family, "flash", "flash_attention_2", GPU_KERNELS, "flash_attn") for family in FAMILIES),
    attending("llama", "sdpa", "sdpa"),
    *(
        Step(f"liger-{f}", "gpu_check.attention:liger", 90, ("liger_kernel",), {"family": f}, GPU_KERNELS)  # Triton's
        for f in FAMILIES
    ),
    Step("fp16-margin", "gpu_check.inference:fp16_margin", 120),
    Step("vllm-w8a8", "gpu_check.inference:vllm_w8a8", 240, ("vllm", "compressed_tensors"), gpu_only=GPU_KERNELS),
    Step("vllm-fp16-gemma2", "gpu_check.inference:vllm_fp16", 240, ("vllm",), gpu_only=ENGINE),
    Step("speed", "gpu_check.speed:speed", 240, ("peft",)),
)
