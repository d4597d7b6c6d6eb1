"""SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): what makes a judge's activations easier to round to int8.

Few channels of what a norm gives are far larger than the others, and all share a token's scale. So the norm is divided
by channel, and the weights that read it, whose scales are their own, are multiplied; the logits stay as they are.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from core.models.architecture import attention_for
from core.models.folders import new_model
from core.models.shards import locate, read_shapes, read_tensor, stored_dtypes, write_weights

# Family -> norm -> the linear layers that read it, and nothing else does. llm-compressor's own table is wrong for
# Gemma-2, whose post_attention_layernorm ends a branch.
ATTENTION = {"input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
MLP = ("mlp.gate_proj", "mlp.up_proj")
LLAMA = {**ATTENTION, "post_attention_layernorm": MLP}
READERS = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "gemma2": {**ATTENTION, "pre_feedforward_layernorm": MLP},
}
OFFSET_NORMS = ("gemma2",)  # whose gains are 1 + weight
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # how far rounding may move a logit


def smooth(model: Path, out: Path, strength: float, prompts: Sequence[Sequence[int]]) -> Path:
    """Write and return `out`: the judge in `model` smoothed on `prompts` by equation 4, its logits unchanged.

    Channel j of a norm is divided by s_j = max|x_j|^strength / max|w_j|^(1 - strength). A factor that all channels
    share would cancel in the int8 scales, so s has a geometric mean of about 1; it is rounded to powers of two, with
    which no stored weight loses a digit. Gains 1 + w are stored in fp32: near -1 a 16-bit w keeps few digits of them.
    Raises `UserError` for other families than those of `READERS`, and where logits change nevertheless.
    """
    family = json.loads((model / "config.json").read_text())["model_type"]
    if family not in READERS:
        raise UserError(
            f"export.quantisation.smoothing={strength}: which layers read which norm is known of {', '.join(READERS)}, "
            f"and {model} is a {family}: set it to null"
        )
    judge = load_judge(model)
    factors = _factors(judge, READERS[family], strength, prompts)
    expected = _logits(judge, prompts[-1])
    del judge

    sources = locate(model)
    gains = {name for name in factors if name.endswith("norm.weight")} if family in OFFSET_NORMS else set()

    def smoothed(name: str) -> torch.Tensor:
        tensor = read_tensor(sources, name)
        if name in gains:
            return (1 + tensor.float()) * factors[name] - 1
        return tensor * factors[name] if name in factors else tensor

    dtypes = stored_dtypes(model) | dict.fromkeys(gains, torch.float32)
    with new_model(out, model) as partial:
        write_weights(partial, read_shapes(model, sources), smoothed, dtypes)
        judge = load_judge(partial)
        moved = (_logits(judge, prompts[-1]) - expected).abs().max().item()
        if not moved < TOLERANCE[judge.dtype]:
            raise UserError(
                f"export.quantisation.smoothing={strength}: smoothing moved a logit of {model} by {moved:.2g}, and it "
                "must leave them: other layers read its norms than those of its family; set it to null"
            )
    return out


def load_judge(model: Path) -> Any:
    """A judge for forward passes: on a GPU in its stored type, else in fp32, because CPUs are slow in less."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", torch.float32)
    settings = AutoConfig.from_pretrained(model)
    judge: Any = AutoModelForSequenceClassification.from_pretrained(
        model, config=settings, dtype=dtype, attn_implementation=attention_for(settings)
    )
    return judge.to(device).eval()


def _factors(
    judge: Any, readers: Mapping[str, Sequence[str]], strength: float, prompts: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Tensor name -> what it is multiplied by, [width]: norms by 1 / s, the weights that read them by s."""
    layers = range(judge.config.num_hidden_layers)
    largest = _largest_outputs(judge, [f"model.layers.{i}.{norm}" for i in layers for norm in readers], prompts)
    factors: dict[str, torch.Tensor] = {}
    for norm, activations in largest.items():
        layer, name = norm.rsplit(".", 1)
        names = [f"{layer}.{reader}" for reader in readers[name]]
        weights = torch.stack([judge.get_submodule(n).weight.abs().amax(0).float().cpu() for n in names]).amax(0)
        live = (activations > 0) & (weights > 0)
        exponents = strength * activations.log2() - (1 - strength) * weights.log2()
        s = torch.where(live, exponents - exponents[live].mean(), 0.0).round().exp2()
        factors |= {f"{norm}.weight": 1 / s, **{f"{n}.weight": s for n in names}}
    return factors


@torch.inference_mode()
def _largest_outputs(judge: Any, norms: Sequence[str], prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Norm -> the largest |output| of each of its channels over all tokens of `prompts`: fp32 [width]."""
    largest: dict[str, torch.Tensor] = {}

    def note(name: str, output: torch.Tensor) -> None:
        found = output.abs().flatten(0, -2).amax(0).float().cpu()
        largest[name] = torch.maximum(largest.get(name, found), found)

    hooks = [
        judge.get_submodule(name).register_forward_hook(lambda _, given, output, name=name: note(name, output))
        for name in norms
    ]
    for prompt in prompts:
        judge.base_model(input_ids=torch.tensor([prompt], device=judge.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return largest


@torch.inference_mode()
def _logits(judge: Any, prompt: Sequence[int]) -> torch.Tensor:
    ids = torch.tensor([prompt], device=judge.device)
    last = judge.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    logits: torch.Tensor = judge.score(last).float().cpu()
    return logits
