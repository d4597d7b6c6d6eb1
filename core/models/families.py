"""The shape of well-known decoders, counted from config.json alone: `distill.plan` needs no torch for them.

Any other model is counted on meta tensors (`core/models/shapes.py`), and so is one of these whose configuration has
what is not reckoned with here. `tests/core/models/test_families.py` compares both, to the parameter.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.models.architecture import head_dim
from core.models.shapes import Shape, meta_classifier, shape_of
from core.records import LABELS

ASKED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# What changes the count, or which layers attend to a window, in ways that are left to transformers.
LEFT = ("attention_bias", "mlp_bias", "use_sliding_window", "quantization_config")
# What each family has a default of its own for, where config.json says nothing.
STATED = {"llama": (), "qwen2": ("num_key_value_heads",), "gemma2": ("num_key_value_heads", "head_dim")}
WINDOW, CAP = 4096, 50.0  # what transformers' Gemma2Config takes where config.json says nothing


@dataclass(frozen=True)
class Decoder:
    """A model without its layers' number: `maps` of each, from (out, in) by name; parameters of a `layer`, and of the
    `embedding`.
    """

    shape: Shape
    maps: Mapping[str, tuple[int, int]]
    layer: int
    embedding: int


def decoder_of(config: Mapping[str, Any], layers: int | None) -> Decoder | None:
    """The decoder of a config.json with its first `layers` (None: all) under a head for `LABELS`; None: not known."""
    family = config.get("model_type")
    if family not in ("llama", "qwen2", "gemma2") or not all(isinstance(config.get(key), int) for key in ASKED):
        return None
    if any(config.get(key) for key in LEFT) or (family == "llama" and "sliding_window" in config):
        return None
    if any(not isinstance(config.get(key), int) for key in STATED[family]):
        return None
    gemma, depth = family == "gemma2", layers or config["num_hidden_layers"]
    width, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    size = head_dim(config)
    queries, keys = heads * size, kv_heads * size
    maps = {
        **{"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, queries)},
        **{"gate_proj": (mlp, width), "up_proj": (mlp, width), "down_proj": (width, mlp)},
    }
    matrices = sum(rows * columns for rows, columns in maps.values())
    norms, biases = (4 if gemma else 2), (queries + 2 * keys if family == "qwen2" else 0)
    layer, embedding = matrices + biases + norms * width, config["vocab_size"] * width
    types = config.get("layer_types") or ["sliding_attention", "full_attention"] * depth * gemma
    tied = config.get("tie_word_embeddings", gemma)
    shape = Shape(
        layers=depth,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        mlp=mlp,
        window=config.get("sliding_window", WINDOW) if gemma else None,
        windowed=types[:depth].count("sliding_attention"),
        capped=bool(config.get("attn_logit_softcapping", CAP)) if gemma else False,
        norms=norms,
        wide_gains=gemma,
        parameters=embedding + depth * layer + width + len(LABELS) * width,
        matrices=depth * matrices,
        largest=max(embedding, *(rows * columns for rows, columns in maps.values())),
        language_head=0 if tied else embedding,
    )
    return Decoder(shape, maps, layer, embedding)


def shape_in(folder: Path) -> Shape:
    """The shape of the judge in a model's folder, whatever its weights are stored as."""
    facts = json.loads((folder / "config.json").read_text())
    decoder = decoder_of({key: value for key, value in facts.items() if key != "quantization_config"}, None)
    return shape_of(meta_classifier(str(folder), folder)) if decoder is None else decoder.shape
