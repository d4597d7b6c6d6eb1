"""Known decoders counted by arithmetic are what transformers and PEFT count, to the parameter."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from core.models.families import decoder_of
from core.models.shapes import SHAPES, facts_of
from students.training.config import ModelConfig
from students.training.shape import counted, counted_on_meta_tensors, trained_shape
from tests.composing import configured

LISTED = yaml.safe_load(SHAPES.read_text()).values()
DECODERS, ENCODERS = (
    [facts["names"][0] for facts in LISTED if (facts["model_type"] == "bert") is bert] for bert in (False, True)
)
SOME = {"targets": ["q_proj", "v_proj"]}
SETTINGS = [
    ({}, {}),
    ({"layers": 1}, SOME),
    ({"freeze_layers": 1}, {"method": "dora", "rank": 3}),
    ({"softcapping": False}, {}),
]


def settings(model: dict[str, object], lora: dict[str, object]) -> ModelConfig:
    plain = configured().model
    return replace(plain, lora=replace(plain.lora, **lora), **model)  # type: ignore[arg-type]


def both_agree(base: str, root: Path, trained: ModelConfig) -> None:
    decoder = decoder_of(facts_of(base, root), trained.layers)
    assert decoder is not None
    assert counted(decoder, trained) == counted_on_meta_tensors(base, root, trained)


@pytest.mark.parametrize("base", DECODERS)
def test_a_known_model_is_counted_as_transformers_counts_it(base: str, tmp_path: Path) -> None:
    both_agree(base, tmp_path, settings({"layers": 3}, {}))


@pytest.mark.parametrize("base", ENCODERS)
def test_an_encoder_is_counted_without_its_weights(base: str, tmp_path: Path) -> None:
    shape = trained_shape(base, tmp_path, settings({"kind": "pointwise", "freeze_layers": 1}, {"rank": 4}))
    width, mlp, layers = shape.width, shape.mlp, shape.layers
    of_layer, pooler, head = 4 * 2 * width + 2 * (width + mlp), 2 * width, 3 * width
    assert (layers, shape.kv_heads, shape.norms) == (6, 12, 2) and shape.parameters == 22_713_216 + head + 3
    assert shape.adapters == 4 * ((layers - 1) * of_layer + pooler) + head + 3  # the bias, which stays zero


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_whatever_is_trained_of_a_model_s_folder_is_counted_alike(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    for model, lora in SETTINGS:
        both_agree(str(folder), tmp_path, settings(model, lora))


def test_what_arithmetic_does_not_know_is_left_to_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    facts = facts_of(str(tiny_llama), tmp_path)
    for other in ({"model_type": "phi3"}, {"attention_bias": True}, {"sliding_window": 9}, {"hidden_size": None}):
        assert decoder_of(facts | other, None) is None
    pattern = settings({}, {"targets": ".*q_proj"})
    decoder = decoder_of(facts, None)
    assert decoder is not None and counted(decoder, pattern) is None
    assert trained_shape(str(tiny_llama), tmp_path, pattern).adapters > 0


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("qwen2", "num_key_value_heads"),
        ("gemma2", "num_key_value_heads"),
        ("gemma2", "head_dim"),
        ("llama", "num_key_value_heads"),
        ("llama", "head_dim"),
        ("gemma2", "sliding_window"),
        ("gemma2", "layer_types"),
        ("gemma2", "attn_logit_softcapping"),
        ("gemma2", "tie_word_embeddings"),
        ("llama", "tie_word_embeddings"),
        ("qwen2", "use_sliding_window"),
    ],
)
def test_what_a_configuration_leaves_out_is_what_transformers_takes(
    family: str, key: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its families' defaults differ: Qwen2 has 32 key-value heads then, Gemma-2 four, Llama as many as heads."""
    facts = facts_of(str(request.getfixturevalue(f"tiny_{family}")), tmp_path)
    facts.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(facts))
    found, plain = trained_shape(str(tmp_path), tmp_path, settings({}, {})), settings({}, {})
    assert found == counted_on_meta_tensors(str(tmp_path), tmp_path, plain)
