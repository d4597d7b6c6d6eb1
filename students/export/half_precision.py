"""Whether a judge fits into fp16, whose largest number is 65504, and for Gemma how to make it fit.

T4s compute in fp16, and models trained in bf16 may hold larger numbers. In Gemma-2 and Gemma-3 every branch ends in a
norm, and only norms read the residual stream. So two things can shrink by a power of two s, every logit stays as it is,
and no engine has to know:

- the residual stream: embeddings / s, and the gains 1 + w of the norms that end a branch become (1 + w) / s;
- a branch from within: up_proj / s shrinks the input and the output of down_proj, v_proj / s those of o_proj, and the
  norm behind them takes it back.

The price of s, which is chosen as small as will do: a norm that reads what shrank feels its epsilon s² times as much,
and the gains come near -1 where they are stored as w, so an engine that casts them to fp16 moves each by up to
s * 2^-12 of itself.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.device import free_device
from core.errors import UserError
from core.models.architecture import attention_for
from core.models.folders import new_model
from core.models.shards import locate, read_shapes, read_tensor, stored_dtypes, write_weights

LARGEST = torch.finfo(torch.float16).max
FAMILIES = ("gemma2", "gemma3_text")
ENDS_OF_BRANCHES = ("post_attention_layernorm", "post_feedforward_layernorm")
STREAM = "residual stream"
STREAM_PLACES = (
    "model.embed_tokens.output",
    "model.norm.input",
    *(f"{norm}.input" for norm in ("input_layernorm", "pre_feedforward_layernorm")),
    *(f"{norm}.output" for norm in ENDS_OF_BRANCHES),
)
# The layer whose weight is divided -> the places between it and the norm that ends the branch.
BRANCH_PLACES = {
    "mlp.up_proj": (
        *("mlp.up_proj.output", "mlp.down_proj.input", "mlp.down_proj.output"),
        "post_feedforward_layernorm.input",
    ),
    "self_attn.v_proj": (
        *("self_attn.v_proj.output", "self_attn.o_proj.input", "self_attn.o_proj.output"),
        "post_attention_layernorm.input",
    ),
}
ROUNDING = 1.001  # a factor leaves so much more room than asked for, lest rounding take it
ROOM = 1.25  # of a GPU's free memory, over the weights, for what a forward pass holds


@dataclass(frozen=True)
class Range:
    """The `largest` |activation|, the `place` that has it, and the `margin`: how many times it fits into 65504.

    `factors`: what the residual stream and the weights of single layers were divided by to come there.
    """

    margin: float
    place: str
    largest: float
    factors: dict[str, int]

    @property
    def rescaled(self) -> bool:
        return bool(self.factors)


def fit_into_fp16(model: Path, out: Path, prompts: Sequence[Sequence[int]], margin: float) -> Range:
    """Find how well the judge in `model` fits into fp16: where it fits only rescaled, write `out`, and else nothing.

    It fits where the largest activation fits `margin` times into 65504, and every weight once; `prompts` are token ids.
    Raises `UserError` naming place and value where it neither fits nor can be made to.
    """
    if not prompts:
        raise UserError(f"{model}: no prompts to measure activations on; raise export.calibration_rows")
    ranges = activation_ranges(model, prompts)
    family = json.loads((model / "config.json").read_text())["model_type"]
    factors = smallest_factors(ranges, margin) if family in FAMILIES else {}
    expected = {place: largest / factors.get(_shrinks_with(place), 1) for place, largest in ranges.items()}
    found = _fitting(model, expected, margin, factors)
    _check_weights(model, weight_ranges(model, factors))
    if not factors:
        return found
    with new_model(out, model) as partial:
        rescale(model, partial, factors)
        return _fitting(model, activation_ranges(partial, prompts), margin, factors)


def activation_ranges(model: Path, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Place -> the largest |activation| there over all tokens of `prompts`, one forward pass each, in fp32.

    Places are input and output of the embeddings, of every linear layer and of every norm, such as
    `model.layers.0.mlp.up_proj.output`; the norms' inputs are the residual stream and the ends of branches. Not seen
    are queries and keys after their rotation (up to √2 larger) and attention's scores, which vLLM and sdpa hold in
    fp32, and transformers' eager attention does not. On the first GPU, where it has the memory, which is free again
    afterwards: the next measurement measures the current weights.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    attention = attention_for(AutoConfig.from_pretrained(model))
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        model, dtype=torch.float32, attn_implementation=attention
    ).eval()
    device = _device(4 * loaded.num_parameters())
    try:
        with torch.inference_mode(), watched(loaded.to(device)) as largest:
            for prompt in prompts:
                loaded.base_model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=False)
        return {place: value.item() for place, value in largest.items()}
    finally:
        del loaded
        free_device()


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Within it, the dictionary receives the largest |activation| at each place, NaN if there is one."""
    largest: dict[str, torch.Tensor] = {}

    def note(place: str, tensor: torch.Tensor) -> None:
        if tensor.is_floating_point():  # token ids are not
            found = tensor.abs().max()
            largest[place] = torch.maximum(largest.get(place, found), found)

    def hook(name: str) -> Any:
        def both(_: nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
            note(f"{name}.input", given[0])
            note(f"{name}.output", output)

        return both

    hooks = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__.endswith("Norm")
    ]
    try:
        yield largest
    finally:
        for handle in hooks:
            handle.remove()


def weight_ranges(model: Path, factors: Mapping[str, int] | None = None) -> dict[str, float]:
    """Tensor -> its largest |weight|, divided by `factors` where they apply."""
    sources = locate(model)
    shapes = read_shapes(model, sources)
    return {name: _rescaled(name, read_tensor(sources, name), factors or {}).abs().max().item() for name in shapes}


def smallest_factors(ranges: Mapping[str, float], margin: float) -> dict[str, int]:
    """What to divide by, so that all that can shrink fits `margin` times: powers of two, none where none is needed."""
    largest: dict[str, float] = {}
    for place, value in ranges.items():
        if what := _shrinks_with(place):
            largest[what] = max(largest.get(what, 0.0), value)
    factors = {what: _power_of_two(value * margin * ROUNDING / LARGEST) for what, value in largest.items()}
    return {what: factor for what, factor in factors.items() if factor > 1}


def rescale(model: Path, out: Path, factors: Mapping[str, int]) -> None:
    """Write into `out` the weights of the Gemma judge in `model`, residual stream and branches divided by `factors`.

    Tensor by tensor, each in its own type, but for the gains that end a branch, which are stored in fp32: see above.
    """
    sources, dtypes = locate(model), stored_dtypes(model)
    if STREAM in factors:
        dtypes |= {name: torch.float32 for name in dtypes if _layer(name).endswith(ENDS_OF_BRANCHES)}
    shapes = read_shapes(model, sources)
    write_weights(out, shapes, lambda name: _rescaled(name, read_tensor(sources, name), factors), dtypes)


def _rescaled(name: str, tensor: torch.Tensor, factors: Mapping[str, int]) -> torch.Tensor:
    layer = _layer(name)
    if STREAM in factors and layer.endswith(ENDS_OF_BRANCHES):
        return (1 + tensor.float()) / factors[STREAM] - 1
    key = STREAM if layer == "model.embed_tokens" else layer
    return tensor.float() / factors[key] if key in factors else tensor


def _layer(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def _shrinks_with(place: str) -> str:
    """The key in `factors` that shrinks the activations at `place`; empty where nothing does."""
    if place.endswith(STREAM_PLACES):
        return STREAM
    for layer, places in BRANCH_PLACES.items():
        for end in places:
            if place.endswith(end):
                return place.removesuffix(end) + layer
    return ""


def _power_of_two(at_least: float) -> int:
    return 2 ** max(0, math.ceil(math.log2(at_least))) if 0 < at_least < math.inf else 1


def _fitting(model: Path, ranges: Mapping[str, float], margin: float, factors: dict[str, int]) -> Range:
    """Raises `UserError` naming the place with the largest activation where that does not fit `margin` times."""
    place = max(ranges, key=lambda name: (math.isnan(ranges[name]), ranges[name]))
    found = Range(LARGEST / ranges[place], place, ranges[place], factors)
    if not found.margin >= margin:
        lower = ", or lower export.margin" if found.margin > 1 else ""
        raise UserError(
            f"{model}: |activations| reach {found.largest:.4g} at {place}, fitting {found.margin:.2g} times into fp16 "
            f"(up to {LARGEST:g}), fewer than export.margin={margin:g}. T4s have no bf16: set "
            f"export.format=gguf, whose activations are fp32; for newer GPUs set export.dtype=bf16{lower}"
        )
    return found


def _check_weights(model: Path, ranges: Mapping[str, float]) -> None:
    name = max(ranges, key=lambda tensor: ranges[tensor])
    if ranges[name] > LARGEST:
        raise UserError(
            f"{model}: |weights| of {name} reach {ranges[name]:.4g}, and fp16 ends at {LARGEST:g}: set "
            "export.dtype=bf16, for newer GPUs than T4s"
        )


def _device(size: int) -> torch.device:
    """The first GPU, where `size` bytes of weights leave it room to work in; else the CPU."""
    roomy = torch.cuda.is_available() and size * ROOM < torch.cuda.mem_get_info()[0]
    return torch.device("cuda" if roomy else "cpu")
