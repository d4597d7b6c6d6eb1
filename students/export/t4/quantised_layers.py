"""The rules of quantised layers, for every kind of layers that config.json describes in compressed-tensors' words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from students.export.t4.findings import Finding
from students.export.t4.model_files import ModelFiles

GROUPS, WHOLE_ROW = (32, 64, 128), (-1, None)  # vllm's marlin_utils.py, MARLIN_SUPPORTED_GROUP_SIZES
TILE_OUTPUTS, TILE_INPUTS = 64, 128  # the same file, GPTQ_MARLIN_MIN_THREAD_N and _K
CUTLASS_MULTIPLE = 16  # vllm/_custom_ops.py, cutlass_scaled_mm
DATA_DEPENDENT_ORDER = ("group", "dynamic", True)  # of columns, in compressed-tensors' `actorder`
PER_TOKEN = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
SCHEME_RULES = {  # and what holds where none is broken
    "weights": "int8 or int4",
    "symmetric": "without zero points",
    "groups": "of 32, 64 or 128, or whole rows",
    "order": "columns as they are stored",
    "activations": "fp16, or int8 with a scale for each token",
}


@dataclass(frozen=True)
class Scheme:
    """How a kind of layers is quantised."""

    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None


def quantised_layers(model: ModelFiles) -> list[Finding]:
    """Each rule, over all kinds of layers; nothing where no layer is quantised."""
    if model.quantisation is None:
        return []
    method = model.quantisation.get("quant_method")
    if method != "compressed-tensors":
        return [Finding("method", False, f"{method} is not checked for T4s: export as w8a8, w8a16 or w4a16")]
    groups = model.quantisation["config_groups"].values()
    schemes = [Scheme(group.get("weights") or {}, group.get("input_activations")) for group in groups]
    found = dict(problem for scheme in schemes for problem in _problems(scheme))
    rules = [Finding(rule, rule not in found, found.get(rule, good)) for rule, good in SCHEME_RULES.items()]
    return [Finding("method", True, method), *rules, _tiles(model, schemes)]


def is_ignored(name: str, quantised: Mapping[str, Any]) -> bool:
    """Whether `ignore` names a layer, in compressed-tensors' notation, where `re:` begins a regular expression."""
    patterns = quantised.get("ignore", [])
    return any(re.match(p[3:], name) if p.startswith("re:") else p == name for p in patterns)


def _problems(scheme: Scheme) -> Iterator[tuple[str, str]]:
    """Which of the rules a kind of layers breaks, and what to do."""
    weights, given = scheme.weights, scheme.activations
    bits, kind, size, order = (weights.get(key) for key in ("num_bits", "type", "group_size", "actorder"))
    grouped = size not in WHOLE_ROW
    if kind != "int" or bits not in (4, 8):
        yield "weights", f"{bits} bits of {kind}: T4s have kernels for int8 and int4; export as w8a8, w8a16 or w4a16"
    elif given is not None and bits != 8:
        yield "weights", f"int{bits} under int8 activations needs a newer GPU: export as w8a8 or w4a16"
    if not weights.get("symmetric"):
        yield "symmetric", "weights have zero points: quantise with symmetric=True"
    if grouped and given is not None:
        yield "groups", f"of {size} under int8 activations: quantise w8a8 with one scale an output channel"
    elif grouped and size not in GROUPS:
        yield "groups", f"of {size}: set export.quantisation.group to 32, 64 or 128, or to -1 for whole rows"
    if grouped and order in DATA_DEPENDENT_ORDER:
        yield "order", f"columns are reordered ({order}), which vLLM no longer loads: quantise with actorder=None"
    if given is not None and (found := {key: given.get(key) for key in PER_TOKEN}) != PER_TOKEN:
        yield "activations", f"{found}: export as w8a8, which rounds them to int8 with a scale for each token"


def _tiles(model: ModelFiles, schemes: Sequence[Scheme]) -> Finding:
    """Only a note: odd shapes run, but slower."""
    int8 = any(scheme.activations is not None for scheme in schemes)
    outputs, inputs = (CUTLASS_MULTIPLE,) * 2 if int8 else (TILE_OUTPUTS, TILE_INPUTS)
    shapes = _shapes(model, int(schemes[0].weights.get("num_bits") or 8))
    odd = [name for name, (rows, columns) in shapes.items() if rows % outputs or columns % inputs]
    if not odd:
        return Finding("tiles", True, f"every layer is made of tiles of {outputs} x {inputs}")
    way = "run by Triton, not CUTLASS" if int8 else "padded with zeros by vLLM 0.33 (earlier ones refuse them)"
    return Finding("tiles", True, f"not made of tiles of {outputs} x {inputs}: {some(odd)}; they are {way}")


def _shapes(model: ModelFiles, bits: int) -> dict[str, tuple[int, int]]:
    """Quantised layers, [outputs, inputs]; packed ones hold 32 / bits weights in an int32."""
    shapes = {}
    for name, (dtype, shape) in model.tensors.items():
        if name.endswith(".weight") and dtype == "I8":
            shapes[name] = shape[0], shape[1]
        elif name.endswith(".weight_packed"):
            shapes[name] = shape[0], shape[1] * 32 // bits
    return shapes


def some(names: Sequence[str]) -> str:
    """The first three of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
