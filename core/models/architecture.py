"""What the names in a model's configuration and weights mean, over all families."""

from collections.abc import Mapping
from typing import Any

# Outputs that a new head replaces, of language models, classifiers, ArmoRM (three) and TRL.
HEADS = ("lm_head", "score", "classifier", "regression_layer", "gating", "reward_transform_matrix", "v_head")


def attention_for(settings: Any) -> str | None:
    """The attention that a forward pass with transformers' configuration `settings` needs; None: transformers' choice.

    Gemma-2 needs eager: sdpa, the default, leaves out the softcapping of attention's scores without a word.
    """
    return "eager" if getattr(settings, "attn_logit_softcapping", None) else None


def head_dim(config: Mapping[str, Any]) -> int:
    """The width of an attention head, by a model's config.json."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def layer_of(tensor: str) -> int:
    """The decoder layer a tensor belongs to (`model.layers.7.mlp...` -> 7); -1 for embeddings, final norm and head."""
    parts = tensor.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1
