"""Whether this machine multiplies int8 as it is written.

oneDNN, which vLLM calls on CPUs, multiplies unsigned by signed bytes and adds pairs of products in 16 bits where an x86
CPU has no VNNI instructions. Pairs of large activations and weights do not fit and are cut: with random activations up
to 127 the results are off by 20% (rms) for random weights up to 127, by 1% up to 80, and exact up to 60.
"""

import json
import logging
import platform
from pathlib import Path

import torch

log = logging.getLogger(__name__)
CPU_INFO = Path("/proc/cpuinfo")
IN_32_BITS = {"avx512_vnni", "avx_vnni", "amx_int8"}  # instructions that add the products there, by Linux's names


def saturates(model: Path) -> bool:
    """Whether vLLM would cut products of the judge in `model` here: it has int8 activations, the CPU no VNNI."""
    if not has_int8_activations(model) or torch.cuda.is_available() or multiplies_exactly():
        return False
    log.warning(
        "%s: this CPU has no VNNI, so vLLM would cut its int8 products (docs/export.md): transformers computes them "
        "exactly, in floating point",
        model,
    )
    return True


def has_int8_activations(model: Path) -> bool:
    """Whether a model's linear layers round their inputs to int8, as w8a8 does."""
    quantised = json.loads((model / "config.json").read_text()).get("quantization_config", {})
    groups = (quantised.get("config_groups") or {}).values()
    return any((group.get("input_activations") or {}).get("num_bits") == 8 for group in groups)


def multiplies_exactly() -> bool:
    """Whether oneDNN's int8 products are exact on this CPU; where its instructions are not known, they are taken so."""
    if platform.machine() not in ("x86_64", "AMD64") or not CPU_INFO.exists():
        return True
    flags = next((line for line in CPU_INFO.read_text().splitlines() if line.startswith("flags")), "")
    return bool(IN_32_BITS & {*flags.split()})
