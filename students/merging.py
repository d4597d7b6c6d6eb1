"""Merging a LoRA adapter and its score head into the base's weights: one classifier folder that any engine loads.

Tensors stream from file to file, one in memory at a time, so that a model merges in far less memory than it occupies.
"""

import json
import math
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distill.models import copy_tokenizer, linked_classifier
from distill.records import LABELS

SHARD_BYTES = 5 * 10**9
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # names in a safetensors header
PEFT_PREFIX = "base_model.model."
SCORE, LM_HEAD = "score", "lm_head"


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA folder: per module the factors A [rank, in] and B [out, rank], and the head [labels, width]."""

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    score: torch.Tensor
    scale: float


def merge_adapter(base: Path, adapter: Path, out: Path, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `out`: `base` with W + scale * B @ A (computed in fp32, stored as `dtype`), the score head and no lm_head.

    `base` is a causal language model or a sequence classifier in safetensors, `adapter` a PEFT LoRA folder whose
    modules_to_save hold `score`. Raises `ValueError` naming the tensors unless the two fit exactly: every adapter
    tensor is used once, every target exists. `out` appears at once and complete, in the place of an older one.
    """
    config = _classifier_config(base, dtype)
    sources = _locate(base)
    lora = read_adapter(adapter)
    shapes = _shapes(base, sources)
    _check_fit(base, adapter, lora, shapes, config)
    layout = {name: shape for name, shape in shapes.items() if name.split(".")[0] not in (SCORE, LM_HEAD)}
    layout[f"{SCORE}.weight"] = [*lora.score.shape]

    def merged(name: str) -> torch.Tensor:
        if name == f"{SCORE}.weight":
            return lora.score
        with safe_open(sources[name], "pt") as file:
            weight = file.get_tensor(name)
        factors = lora.factors.get(name.removesuffix(".weight"))
        if factors is None:
            return weight
        a, b = factors
        return torch.addmm(weight.float(), b.float(), a.float(), alpha=lora.scale)

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_weights(partial, layout, merged, dtype, shard_bytes)
    copy_tokenizer(base, partial)
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def unmerge_adapter(base: Path, adapter: Path, model: Path, bare: Path) -> None:
    """Write `model`, `base` under the adapter's score head (links, no copy), and `bare`, the adapter without that head.

    Together they are the judge, for an engine that serves LoRA adapters beside the weights of a base that is perhaps
    quantised or too large to be written once more.
    """
    lora = read_adapter(adapter)
    linked_classifier(base, model, {f"{SCORE}.weight": lora.score}, LABELS)
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(f"{PEFT_PREFIX}{SCORE}.weight")
    bare.mkdir(parents=True, exist_ok=True)
    (bare / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": None}, indent=2) + "\n")
    save_file(tensors, bare / "adapter_model.safetensors")


def read_adapter(folder: Path) -> Adapter:
    """The LoRA factors, the scale (alpha / rank, rsLoRA: alpha / sqrt(rank)) and the head of a PEFT adapter folder.

    Raises `ValueError` for kinds of adapters that are more than W + scale * B @ A, and for tensors without a partner.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    _refuse_other_kinds(folder, config)
    tensors = {name.removeprefix(PEFT_PREFIX): t for name, t in load_file(folder / "adapter_model.safetensors").items()}
    score = tensors.pop(f"{SCORE}.weight", None)
    if score is None:
        raise ValueError(
            f"{folder} has no score head ({PEFT_PREFIX}{SCORE}.weight): train with modules_to_save: [{SCORE}]"
        )
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name})
    factors = {m: (tensors.pop(f"{m}.lora_A.weight", None), tensors.pop(f"{m}.lora_B.weight", None)) for m in modules}
    rank = config["r"]
    problems = [f"{name}: neither a LoRA factor of a linear layer nor the score head" for name in sorted(tensors)]
    for module, (a, b) in factors.items():
        if a is None or b is None:
            problems.append(f"{module}: lora_{'A' if a is None else 'B'}.weight is missing")
        elif a.shape[0] != rank or b.shape[1] != rank:
            problems.append(
                f"{module}: A {[*a.shape]} and B {[*b.shape]} do not have the rank r={rank} of adapter_config.json"
            )
    if problems:
        raise ValueError(f"{folder} is not a whole adapter:\n" + "\n".join(f"  - {p}" for p in problems))
    whole = {module: (a, b) for module, (a, b) in factors.items() if a is not None and b is not None}
    return Adapter(whole, score, config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    initial = config.get("init_lora_weights")
    reasons = {
        f"peft_type={config.get('peft_type')}: only LORA can be merged": config.get("peft_type") != "LORA",
        "use_dora: DoRA rescales the merged weight by a learnt magnitude": config.get("use_dora"),
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
        raise ValueError(f"{folder} cannot be merged:\n" + "\n".join(f"  - {reason}" for reason in found))


def _classifier_config(base: Path, dtype: torch.dtype) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    if "quantization_config" in config:
        raise ValueError(f"{base} is quantised: an adapter merges into the unquantised weights; give those as the base")
    name = next(iter(config.get("architectures") or []), "")
    family = name.removesuffix("ForCausalLM").removesuffix("ForSequenceClassification")
    if family == name:
        raise ValueError(
            f"{base} is a {name or 'nameless model'}, expected ...ForCausalLM or ...ForSequenceClassification"
        )
    eos = config.get("eos_token_id")
    pad = config.get("pad_token_id")
    config |= {
        "architectures": [f"{family}ForSequenceClassification"],
        "id2label": {str(i): label for i, label in enumerate(LABELS)},
        "label2id": {label: i for i, label in enumerate(LABELS)},
        "pad_token_id": pad if pad is not None else eos[0] if isinstance(eos, list) else eos,
        "dtype": str(dtype).removeprefix("torch."),
    }
    config.pop("torch_dtype", None)  # the older name of dtype
    return config


def _locate(base: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    if (base / INDEX).exists():
        return {name: base / file for name, file in json.loads((base / INDEX).read_text())["weight_map"].items()}
    if not (base / SINGLE).exists():
        raise ValueError(f"{base} holds no safetensors weights (neither {SINGLE} nor {INDEX})")
    with safe_open(base / SINGLE, "pt") as file:
        return dict.fromkeys(file.keys(), base / SINGLE)


def _shapes(base: Path, sources: Mapping[str, Path]) -> dict[str, list[int]]:
    shapes, others = {}, []
    for path in sorted(set(sources.values())):
        with safe_open(path, "pt") as file:
            for name in (n for n, p in sources.items() if p == path):
                view = file.get_slice(name)
                shapes[name] = view.get_shape()
                if view.get_dtype() not in STORED.values():
                    others.append(f"{name} ({view.get_dtype()})")
    if others:
        raise ValueError(f"{base}: these tensors are no plain floats: {', '.join(others)}; give the unquantised base")
    return shapes


def _check_fit(
    base: Path, adapter: Path, lora: Adapter, shapes: Mapping[str, list[int]], config: Mapping[str, Any]
) -> None:
    problems = []
    for module, (a, b) in lora.factors.items():
        expected = [b.shape[0], a.shape[1]]
        if module == LM_HEAD or f"{module}.weight" not in shapes:
            problems.append(f"{module}: the base has no such layer to keep")
        elif shapes[f"{module}.weight"] != expected:
            problems.append(f"{module}: B @ A is {expected}, the base's weight {shapes[f'{module}.weight']}")
    if [*lora.score.shape] != [len(LABELS), config["hidden_size"]]:
        problems.append(f"{SCORE}: the head is {[*lora.score.shape]}, expected {[len(LABELS), config['hidden_size']]}")
    if problems:
        raise ValueError(f"adapter {adapter} does not fit base {base}:\n" + "\n".join(f"  - {p}" for p in problems))


def _write_weights(
    folder: Path,
    layout: Mapping[str, list[int]],
    tensor: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    shard_bytes: int,
) -> None:
    """Write the tensors of `layout` (name -> shape) in files of at most `shard_bytes` (or one tensor), and an index."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in layout.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    one = len(shards) == 1
    files = [SINGLE if one else f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        _write_shard(folder / file, {name: layout[name] for name in names}, tensor, dtype)
    if not one:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_shard(
    path: Path, layout: Mapping[str, list[int]], tensor: Callable[[str], torch.Tensor], dtype: torch.dtype
) -> None:
    # By hand, because save_file wants all tensors at once: https://github.com/huggingface/safetensors#format
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in layout.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": STORED[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in layout:
            file.write(tensor(name).to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
        assert file.tell() == 8 + len(text) + end, path
