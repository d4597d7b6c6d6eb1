import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from core.records import LABELS
from students.merging import merge_adapter
from tests.tiny_models import FAMILIES, Family, tiny_causal

pytestmark = pytest.mark.timeout(300)
TOLERANCE = 1e-6


def train_randomly(base: Path, adapter: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Save a PEFT adapter with random factors and head; returns PEFT's own merged weights."""
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS), dtype=torch.float32),
        LoraConfig(**{"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 12, "target_modules": "all-linear", **options}),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
                assert "lora_" in name or "score" in name
    model.save_pretrained(adapter)
    return model.merge_and_unload().state_dict()


def assert_equal(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < TOLERANCE


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_pefts_merge(family: Family, options: dict[str, bool], tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base", family)
    expected = train_randomly(base, tmp_path / "adapter", **options)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", torch.float32)
    assert_equal(tmp_path / "merged", expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_as_a_judge_with_nothing_missing(family: Family, tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base", family)
    train_randomly(base, tmp_path / "adapter")
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", torch.bfloat16)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", dtype="auto", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    assert model.config.id2label == dict(enumerate(LABELS)) and model.config.pad_token_id is not None
    assert (tmp_path / "merged/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_shards_make_no_difference(tiny_llama: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(sharded, max_shard_size="100KB")
    assert len([*sharded.glob("*.safetensors")]) > 1
    expected = train_randomly(tiny_llama, tmp_path / "adapter")
    merge_adapter(sharded, tmp_path / "adapter", tmp_path / "merged", torch.float32, shard_bytes=60_000)
    assert len([*(tmp_path / "merged").glob("*.safetensors")]) > 2
    assert_equal(tmp_path / "merged", expected)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(reloaded.state_dict()[name], tensor) for name, tensor in load_shards(tmp_path / "merged"))


def load_shards(folder: Path) -> list[tuple[str, torch.Tensor]]:
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return [(name, load_file(folder / file)[name]) for name, file in weight_map.items()]


def test_merges_into_a_classifier_and_replaces_its_head(tiny_judge_qwen2: Path, tmp_path: Path) -> None:
    expected = train_randomly(tiny_judge_qwen2, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    merge_adapter(tiny_judge_qwen2, tmp_path / "adapter", tmp_path / "merged", torch.float32)
    assert_equal(tmp_path / "merged", expected)


def test_leaves_the_base_alone_and_replaces_what_is_in_the_way(tiny_llama: Path, tmp_path: Path) -> None:
    before = (tiny_llama / "model.safetensors").read_bytes()
    expected = train_randomly(tiny_llama, tmp_path / "adapter")
    out = tmp_path / "merged"
    for leftover in (out, tmp_path / ".merged.partial"):
        leftover.mkdir()
        (leftover / "model-00001-of-00002.safetensors").write_bytes(b"half")
    merge_adapter(tiny_llama, tmp_path / "adapter", out, torch.float32)
    assert_equal(out, expected)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "merged"}
    assert (tiny_llama / "model.safetensors").read_bytes() == before


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = tmp_path_factory.mktemp("trained") / "adapter"
    train_randomly(tiny_llama, adapter)
    return adapter


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
FOREIGN = "base_model.model.model.layers.7.self_attn.q_proj"


def without_b(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{Q_PROJ}.lora_B.weight"]


def with_other_rank(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q_PROJ}.lora_A.weight"] = torch.zeros(3, 64)


def with_unknown_target(tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {f"{FOREIGN}.lora_{m}.weight": tensors[f"{Q_PROJ}.lora_{m}.weight"].clone() for m in "AB"}


def with_other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q_PROJ}.lora_B.weight"] = torch.zeros(65, 4)


def with_a_stranger(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.norm.weight"] = torch.zeros(64)


def without_head(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["base_model.model.score.weight"]


def with_two_labels(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.score.weight"] = torch.zeros(2, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_b, r"layers\.0\.self_attn\.q_proj: lora_B\.weight is missing"),
        (with_other_rank, r"layers\.0\.self_attn\.q_proj: .*rank r=4"),
        (with_unknown_target, r"layers\.7\.self_attn\.q_proj: the base has no such layer"),
        (with_other_shape, r"layers\.0\.self_attn\.q_proj: B @ A is \[65, 64\]"),
        (with_a_stranger, r"model\.norm\.weight: neither"),
        (without_head, "no score head"),
        (with_two_labels, r"the head is \[2, 64\], expected \[3, 64\]"),
    ],
)
def test_refuses_an_adapter_that_does_not_fit(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, tiny_llama: Path, trained: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(trained, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        merge_adapter(tiny_llama, adapter, tmp_path / "merged", torch.float32)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "LOHA"}, "LOHA"),
    ],
)
def test_refuses_adapters_that_are_more_than_two_factors(
    option: dict[str, Any], reason: str, tiny_llama: Path, trained: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(trained, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | option))
    with pytest.raises(ValueError, match=reason):
        merge_adapter(tiny_llama, adapter, tmp_path / "merged", torch.float32)


def test_refuses_a_quantised_base(tiny_llama: Path, trained: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="quantised"):
        merge_adapter(base, trained, tmp_path / "merged", torch.float32)
