"""What the names in a model's configuration and weights mean, over all families."""

import re
from collections.abc import Mapping
from typing import Any

# Outputs that a new head replaces, of language models (BERT's: cls), classifiers, ArmoRM (three) and TRL.
HEADS = ("lm_head", "cls", "score", "classifier", "regression_layer", "gating", "reward_transform_matrix", "v_head")
# By `model_type`. Their tokens see those behind them, too, and their classifier pools the first one ([CLS]).
ENCODERS = ("bert",)


def is_frozen(tensor: str, layers: int) -> bool:
    """Whether a full tuning leaves a tensor as it is whose first `layers` layers are frozen, embeddings among them."""
    return layers > 0 and ("embed_tokens" in tensor or ".embeddings." in tensor or 0 <= layer_of(tensor) < layers)


def attention_for(settings: Any) -> str | None:
    """The attention that a forward pass with transformers' configuration `settings` needs; None: transformers' choice.

    Gemma-2 needs eager: sdpa, the default, leaves out the softcapping of attention's scores without a word.
    """
    return "eager" if getattr(settings, "attn_logit_softcapping", None) else None


def head_of(model_type: str | None) -> str:
    """What transformers' sequence classifier of a family calls its last layer: [outputs, width].

    A decoder's has no bias. An encoder's has one, and that of a judge is zero: its pooled token can hold any constant.
    """
    return "classifier" if model_type in ENCODERS else "score"


def classifier_of(architecture: str) -> str | None:
    """The sequence classifier beside a model's class: of LlamaForCausalLM LlamaForSequenceClassification, of BertModel
    BertForSequenceClassification; None for a name that is neither.
    """
    family, is_for, _ = architecture.partition("For")
    if not is_for and not family.endswith("Model"):
        return None
    return f"{family.removesuffix('Model')}ForSequenceClassification"


def head_dim(config: Mapping[str, Any]) -> int:
    """The width of an attention head, by a model's config.json."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def layer_of(tensor: str) -> int:
    """The layer a tensor belongs to (`model.layers.7.mlp...` or `bert.encoder.layer.7.output...` -> 7); -1 for
    embeddings, final norm, pooler and head.
    """
    found = re.search(r"\.layers?\.(\d+)\.", f".{tensor}.")
    return int(found[1]) if found else -1
