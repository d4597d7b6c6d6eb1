"""Merging a LoRA adapter and its score head into the base's weights: one classifier folder that any engine loads.

Tensors stream through `core.models.shards`, one in memory at a time.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from core.errors import UserError
from core.models.architecture import ENCODERS, HEADS, classifier_of, head_of
from core.models.folders import new_model
from core.models.linking import head_tensors, linked_classifier
from core.models.shards import SHARD_BYTES, locate, read_shapes, read_tensor, write_weights
from core.pointwise import KEY, outputs_of
from core.records import LABELS

PEFT_PREFIX = "base_model.model."
SCORE_HEADS = ("score", "classifier")
MAGNITUDE = ".lora_magnitude_vector"
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # Gemma-2's keys in config.json


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA folder: per module the factors A [rank, in] and B [out, rank], and the head [outputs, width].

    `head`: what its classifier calls the head (`core.models.architecture.head_of`). `magnitudes` are DoRA's, [out] per
    module; without them the merged weight is W + scale * B @ A.
    """

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    head: str
    score: torch.Tensor
    scale: float
    magnitudes: dict[str, torch.Tensor]

    def merge(self, module: str, weight: torch.Tensor) -> torch.Tensor:
        """The module's weight [out, in] in fp32 with what was learnt.

        DoRA sets each output row to its magnitude (Liu et al. 2024, arXiv 2402.09353, equation 5).
        """
        a, b = self.factors[module]
        merged = torch.addmm(weight.float(), b.float(), a.float(), alpha=self.scale)
        if module in self.magnitudes:
            merged *= (self.magnitudes[module].float() / merged.norm(dim=1)).unsqueeze(1)
        return merged


def merge_adapter(
    base: Path,
    adapter: Path,
    out: Path,
    dtype: torch.dtype,
    settings: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `out`: `base` with what the adapter learnt (merged in fp32, stored as `dtype`), its head and no other.

    `settings` go into its config.json, in place of the base's.

    `base` is a language model, an encoder or a sequence classifier in safetensors, `adapter` a PEFT LoRA folder whose
    modules_to_save hold the head. Raises `UserError` naming the tensors unless the two fit exactly: every adapter
    tensor is used once, every target exists. `out` appears at once and complete, in the place of an older one.
    """
    sources = locate(base)
    lora = read_adapter(adapter)
    config = _classifier_config(base, dtype, outputs_of(len(lora.score) == 1)) | dict(settings or {})
    shapes = read_shapes(base, sources)
    _check_fit(base, adapter, lora, shapes, config)
    head = head_tensors(config["model_type"], lora.score)
    layout = {name: shape for name, shape in shapes.items() if name.split(".")[0] not in HEADS}
    layout |= {name: [*tensor.shape] for name, tensor in head.items()}

    def merged(name: str) -> torch.Tensor:
        if name in head:
            return head[name]
        weight = read_tensor(sources, name)
        module = name.removesuffix(".weight")
        return lora.merge(module, weight) if module in lora.factors else weight

    with new_model(out, base, config) as partial:
        write_weights(partial, layout, merged, dtype, shard_bytes)


def unmerge_adapter(
    base: Path, adapter: Path, model: Path, bare: Path, settings: Mapping[str, Any] | None = None
) -> None:
    """Write `model`, `base` under the adapter's score head (links, no copy), and `bare`, the adapter without that head.

    Together they are the judge, for an engine that serves LoRA adapters beside the weights of a base that is perhaps
    quantised or too large to be written once more. Raises `UserError` for DoRA, which vLLM does not serve.
    """
    lora = read_adapter(adapter)
    if lora.magnitudes:
        raise UserError(f"{adapter} is a DoRA adapter, which vLLM cannot serve beside its base: set teacher.merge=true")
    family = json.loads((base / "config.json").read_text())["model_type"]
    if family in ENCODERS:
        raise UserError(f"{base} is an encoder, beside which vLLM serves no adapter: set teacher.merge=true")
    linked_classifier(base, model, head_tensors(family, lora.score), outputs_of(len(lora.score) == 1), settings)
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(f"{PEFT_PREFIX}{lora.head}.weight")
    bare.mkdir(parents=True, exist_ok=True)
    (bare / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": None}, indent=2) + "\n")
    save_file(tensors, bare / "adapter_model.safetensors")


def read_adapter(folder: Path) -> Adapter:
    """The LoRA factors, the scale (alpha / rank, rsLoRA: alpha / sqrt(rank)) and the head of a PEFT adapter folder.

    Raises `UserError` for kinds of adapters that are more than W + scale * B @ A, and for tensors without a partner.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    _refuse_other_kinds(folder, config)
    tensors = {name.removeprefix(PEFT_PREFIX): t for name, t in load_file(folder / "adapter_model.safetensors").items()}
    head = next((name for name in SCORE_HEADS if f"{name}.weight" in tensors), None)
    if head is None:
        raise UserError(
            f"{folder} has no score head ({PEFT_PREFIX}score.weight): train with modules_to_save: [score], of an "
            "encoder [classifier]"
        )
    score = tensors.pop(f"{head}.weight")
    magnitudes = {name: tensors.pop(name) for name in sorted(tensors) if name.endswith(MAGNITUDE)}
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name})
    factors = {m: (tensors.pop(f"{m}.lora_A.weight", None), tensors.pop(f"{m}.lora_B.weight", None)) for m in modules}
    rank = config["r"]
    expected = {f"{module}{MAGNITUDE}" for module in modules} if config.get("use_dora") else set()
    problems = [f"{name}: expected in a DoRA adapter, and in no other" for name in sorted(expected ^ magnitudes.keys())]
    problems += [f"{name}: neither a LoRA factor of a linear layer nor the score head" for name in sorted(tensors)]
    for module, (a, b) in factors.items():
        if a is None or b is None:
            problems.append(f"{module}: lora_{'A' if a is None else 'B'}.weight is missing")
        elif a.shape[0] != rank or b.shape[1] != rank:
            problems.append(
                f"{module}: A {[*a.shape]} and B {[*b.shape]} do not have the rank r={rank} of adapter_config.json"
            )
    if problems:
        raise UserError(f"{folder} is not a whole adapter:\n" + "\n".join(f"  - {p}" for p in problems))
    whole = {module: (a, b) for module, (a, b) in factors.items() if a is not None and b is not None}
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapter(whole, head, score, scale, {name.removesuffix(MAGNITUDE): t for name, t in magnitudes.items()})


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    initial = config.get("init_lora_weights")
    reasons = {
        f"peft_type={config.get('peft_type')}: only LORA can be merged": config.get("peft_type") != "LORA",
        f"bias={config.get('bias')!r}: the base's biases were trained too; train with bias: none": config.get("bias")
        != "none",
        "lora_bias: B has a bias": config.get("lora_bias"),
        "fan_in_fan_out: the base's weights are stored transposed": config.get("fan_in_fan_out"),
        "rank_pattern / alpha_pattern: every module must have one rank and scale": config.get("rank_pattern")
        or config.get("alpha_pattern"),
        "layer_replication: the base's layers were repeated": config.get("layer_replication"),
        f"init_lora_weights={initial!r}: it changed the base's weights": isinstance(initial, str)
        and initial not in ("gaussian", "orthogonal"),
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise UserError(f"{folder} cannot be merged:\n" + "\n".join(f"  - {reason}" for reason in found))


def _classifier_config(base: Path, dtype: torch.dtype, outputs: Sequence[str]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    if "quantization_config" in config:
        raise UserError(f"{base} is quantised: an adapter merges into the unquantised weights; give those as the base")
    name = next(iter(config.get("architectures") or []), "")
    classifier = classifier_of(name)
    if classifier is None:
        raise UserError(
            f"{base} is a {name or 'nameless model'}, expected ...ForCausalLM or ...ForSequenceClassification"
        )
    eos = config.get("eos_token_id")
    pad = config.get("pad_token_id")
    config |= {
        "architectures": [classifier],
        "id2label": {str(i): name for i, name in enumerate(outputs)},
        "label2id": {name: i for i, name in enumerate(outputs)},
        "pad_token_id": pad if pad is not None else eos[0] if isinstance(eos, list) else eos,
        "dtype": str(dtype).removeprefix("torch."),
    }
    config.pop("torch_dtype", None)  # the older name of dtype
    config.pop("auto_map", None)  # code of the base's own for a head that is gone
    config.pop(KEY, None)  # what its rewards went through
    return config


def caps_off(config: Mapping[str, Any]) -> dict[str, None]:
    """What to set in a model's configuration so that it computes without softcapping."""
    return {name: None for name in CAPS if config.get(name) is not None}


def stored_head(base: Path, outputs: Sequence[str] = LABELS) -> tuple[torch.Tensor | None, str]:
    """The score head [outputs, width] that `base` holds, its rows in our order, and in words where it comes from.

    None where it has another number of outputs, or names for three that say nothing. A single one is a reward.
    """
    config = json.loads((base / "config.json").read_text())
    name = head_of(config.get("model_type"))
    rows, sources = stored_rows(base), locate(base)
    if rows is None:
        return None, f"{base} has no score head"
    if len(rows) > 1 and f"{name}.bias" in sources and read_tensor(sources, f"{name}.bias").any():
        return None, f"that of {base} has a bias"
    named = config.get("id2label", {})
    names = [str(named.get(str(i), "")).removeprefix("winner_").removeprefix("model_") for i in range(len(rows))]
    if len(outputs) == len(rows) == 1:
        return rows, f"{base} gives rewards"
    if sorted(names) != sorted(outputs):
        return None, f"that of {base} has {len(rows)} outputs, named {list(named.values())}, not {[*outputs]}"
    return rows[[names.index(label) for label in outputs]], f"{base} is a judge over {[*named.values()]}"


def stored_rows(base: Path) -> torch.Tensor | None:
    """The weights of the score head that `base` holds, whatever they mean; None where it has none."""
    name = f"{head_of(json.loads((base / 'config.json').read_text()).get('model_type'))}.weight"
    return read_tensor(sources, name) if name in (sources := locate(base)) else None


def _check_fit(
    base: Path, adapter: Path, lora: Adapter, shapes: Mapping[str, list[int]], config: Mapping[str, Any]
) -> None:
    problems = []
    for module, (a, b) in lora.factors.items():
        expected = [b.shape[0], a.shape[1]]
        if module in HEADS or f"{module}.weight" not in shapes:
            problems.append(f"{module}: the base has no such layer to keep")
        elif shapes[f"{module}.weight"] != expected:
            problems.append(f"{module}: B @ A is {expected}, the base's weight {shapes[f'{module}.weight']}")
    expected = [len(config["id2label"]), config["hidden_size"]]
    if [*lora.score.shape] != expected:
        problems.append(f"{lora.head}: the head is {[*lora.score.shape]}, expected {expected}")
    if problems:
        raise UserError(f"adapter {adapter} does not fit base {base}:\n" + "\n".join(f"  - {p}" for p in problems))
