"""The GPTQ layout of AutoGPTQ, which transformers reads with GPTQModel's kernels, vLLM with Marlin.

What llm-compressor packed is the same integers under other names and axes. Of a linear layer [out, in], with `b` bits a
weight and `g` weights a scale (https://github.com/ModelCloud/GPTQModel, nn_modules/qlinear/torch.py):

    qweight  int32 [in b / 32, out]       32 / b weights q + 2^(b-1) below one another, the first in the lowest bits
    scales   fp16  [in / g, out]          weight = scale (q + 2^(b-1) - zero)
    qzeros   int32 [in / g, out b / 32]   zero - 1, packed side by side: the first format wrote one less, for good
    g_idx    int32 [in]                   the group of each input
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from core.models.folders import new_model
from core.models.shards import rewrite
from students.merging import SCORE

WORD = 32
PACKED = ".weight_packed"
BITS = (4, 8)


def repack_gptq(quantised: Path, out: Path) -> None:
    """Write `out`: the judge that w8a16 or w4a16 wrote into `quantised`, in GPTQ's layout, with the same weights.

    Scales are stored in fp16, in which the kernels multiply; embeddings, norms, biases and the score head stay as they
    are. `out` appears whole, in the place of an older one. Raises `UserError` for another kind of quantisation.
    """
    config = json.loads((quantised / "config.json").read_text())
    weights = _packed_weights(quantised, config)
    bits, group = weights["num_bits"], weights["group_size"] if weights["strategy"] == "group" else -1
    config["quantization_config"] = _description(bits, group)
    with new_model(out, quantised, config) as partial:
        rewrite(quantised, partial, lambda tensors: dict(_repacked(tensors, bits, group)))


def gptq_layer(packed: torch.Tensor, scale: torch.Tensor, bits: int, group: int) -> dict[str, torch.Tensor]:
    """A layer's four tensors from compressed-tensors' packed weights [out, in bits / 32] and scales [out, groups].

    Both pack q + 2^(bits-1) from the lowest bits up, so that the words need but be transposed. Raises `UserError`
    where rows or zeros do not fill whole words.
    """
    outputs, inputs = packed.shape[0], packed.shape[1] * WORD // bits
    if outputs * bits % WORD:
        raise UserError(f"{outputs} outputs of {bits} bits do not fill words of {WORD} bits: GPTQ's zeros need that")
    zero = sum(((1 << bits - 1) - 1) << shift for shift in range(0, WORD, bits))
    return {
        "qweight": packed.T.contiguous(),
        "scales": scale.T.to(torch.float16).contiguous(),
        "qzeros": torch.full((scale.shape[1], outputs * bits // WORD), zero, dtype=torch.int32),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // (inputs if group == -1 else group),
    }


def _repacked(tensors: Mapping[str, torch.Tensor], bits: int, group: int) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a file: a packed layer's parts become GPTQ's, what else it holds passes."""
    layers = {name.removesuffix(PACKED) for name in tensors if name.endswith(PACKED)}
    for name, tensor in tensors.items():
        if name.rpartition(".")[0] not in layers or name.endswith(".bias"):
            yield name, tensor
    for layer in sorted(layers):
        packed, scale = tensors[f"{layer}{PACKED}"], tensors[f"{layer}.weight_scale"]
        if tensors[f"{layer}.weight_shape"][1] * bits != packed.shape[1] * WORD:
            raise UserError(f"the rows of {layer} end within a word of {WORD} bits, which GPTQ has no way to say")
        for part, repacked in gptq_layer(packed, scale, bits, group).items():
            yield f"{layer}.{part}", repacked


def _packed_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """How the weights were quantised, from compressed-tensors' description."""
    description = config.get("quantization_config") or {}
    groups = [*(description.get("config_groups") or {}).values()]
    weights: dict[str, Any] = groups[0]["weights"] if len(groups) == 1 else {}
    fits = weights.get("num_bits") in BITS and weights.get("strategy") in ("group", "channel")
    if description.get("format") != "pack-quantized" or not fits or not weights["symmetric"] or weights.get("actorder"):
        raise UserError(
            f"{folder} is not quantised as GPTQ's layout can hold it (format {description.get('format')!r}, "
            f"weights {weights}): give what w8a16 or w4a16 wrote"
        )
    return weights


def _description(bits: int, group: int) -> dict[str, Any]:
    """quantization_config; `dynamic` tells both readers to leave the score head alone."""
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "lm_head": False,
        "dynamic": {f"-:{SCORE}": {}},
    }
