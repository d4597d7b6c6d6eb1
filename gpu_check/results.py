"""How a step ends other than by returning its figures, and how numbers are compared."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

Figures = dict[str, Any]
# By how much what a GPU computes may differ from a CPU in fp32: of a loss in nats, and of logits or gradients the root
# mean square of the differences over that of the values. bf16 has three digits:
# on a CPU it was off by 0.001 nats, 0.8% of the logits (at a width of 1,024) and 1.1% of the gradients (at 512).
LOSS = {"fp32": 2e-3, "bf16": 1e-2}
LOGITS = {"fp32": 4e-3, "fp16": 2e-2, "bf16": 4e-2}
EXACT = 1e-4  # of both, in fp32 on a CPU


class Skip(Exception):
    """The step cannot run here, for the reason it gives."""


class Failed(Exception):
    """The step ran, and what it found is wrong."""


def need(*packages: str) -> None:
    """Raises `Skip` where one of `packages` is not installed."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise Skip(f"needs {' and '.join(missing)}, not installed here")


def name_of(dtype: Any) -> str:
    """fp32, fp16 or bf16 of a torch type."""
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[str(dtype).removeprefix("torch.")]


def same(what: str, found: Sequence[float], expected: Sequence[float], tolerance: float) -> None:
    """Raises `Failed` where numbers differ by more than `tolerance`, or are not finite."""
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not math.isfinite(one) or not abs(one - other) <= tolerance:
            raise Failed(f"{what} {i + 1} of {len(found)} is {one:.6g}, expected {other:.6g} within {tolerance:g}")


def close(differences: Mapping[str, float], tolerance: float) -> None:
    """Raises `Failed` where a relative difference is larger than `tolerance`, or is not finite."""
    if off := {what: f"{value:.3g}" for what, value in differences.items() if not value <= tolerance}:
        raise Failed(f"relative differences over {tolerance:g}: {off}")


def relative(found: Any, expected: Any) -> float:
    """Root mean square of the difference of two tensors over that of `expected`, in fp64."""
    found, expected = (tensor.detach().double().cpu() for tensor in (found, expected))
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
