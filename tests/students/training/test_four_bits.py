"""QLoRA with the real bitsandbytes, which trains on CPUs, too: what is stored, resumed and merged."""

from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from core.errors import UserError
from students.merging import merge_adapter
from students.training.model import build_judge
from tests.composing import configured
from tests.students.training.gpus import Loaded, PretendedGpus
from tests.students.training.short_runs import PROMPTS, STEPS, Run, train
from tests.tiny_models import tiny_judge

pytestmark = pytest.mark.timeout(300)
FOUR_BITS = ("model.load_in_4bit=true", "engine.gradient_checkpointing=true")
LAYERS, LINEARS = 2, 7  # of a tiny model, of each of its layers


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge, so that its score head is no matter of luck."""
    return tiny_judge(tmp_path_factory.mktemp("base"), request.param)


def logits_of(model: Any) -> np.ndarray:
    """[prompts, 3] by transformers' own pooling, which looks for pads: here no id is one."""
    model.eval().config.pad_token_id = -1
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in PROMPTS]).float().numpy()


def test_only_the_base_is_stored_in_four_bits(base: Path) -> None:
    student = configured("+exp=smoke", "model.layers=null", *FOUR_BITS).model
    judge = build_judge(base, student, configured("+exp=smoke").engine, 0)
    stored = [m for m in judge.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(stored) == LAYERS * LINEARS and {m.weight.dtype for m in stored} == {torch.uint8}
    assert {m.weight.quant_type for m in stored} == {"nf4"} and all(m.weight.quant_state.nested for m in stored)
    assert not any(m.support_avx512bf16_for_cpu for m in stored), "packed in a validation, they train on in bf16"
    weights, head = judge.trainable()
    assert len(weights) == 2 * len(stored) and {p.dtype for p in [*weights, *head]} == {torch.float32}
    with pytest.raises(UserError, match="4-bit weights cannot be trained"):
        full = configured("+exp=smoke", "model=full", *FOUR_BITS).model
        build_judge(base, full, configured("+exp=smoke").engine, 0)


def test_each_rank_loads_onto_its_own_gpu(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "5")
    config = configured("+exp=smoke", "model.layers=null", "model.dtype=bf16", *FOUR_BITS)
    gpus = PretendedGpus(monkeypatch)
    gpus.note_loading(monkeypatch)
    with pytest.raises(Loaded):
        build_judge(base, config.model, config.engine, 0)
    assert gpus.events[0] == "current cuda:5"
    assert gpus.events[1]["device_map"] == {"": "cuda:5"}


@pytest.fixture(scope="module")
def straight(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("straight")
    return folder, train(base, 2, folder, overrides=FOUR_BITS)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    base: Path, straight: tuple[Path, Run], tmp_path: Path
) -> None:
    _, whole = straight
    with pytest.raises(KeyboardInterrupt):
        train(base, 2, tmp_path, dies_in=3, overrides=FOUR_BITS)
    again = train(base, 2, tmp_path, overrides=FOUR_BITS)
    assert again.curve == whole.curve and len(whole.curve) == STEPS
    assert all(torch.equal(again.values[name], value) for name, value in whole.values.items())


def test_what_was_learnt_is_merged_into_the_unrounded_base(
    base: Path, straight: tuple[Path, Run], tmp_path: Path
) -> None:
    """Merged, it is what PEFT computes over the base in fp32, and about what was trained over the rounded one."""
    folder, trained = straight
    merge_adapter(base, folder / "adapter", tmp_path / "merged", torch.float32)
    attention = {"attn_implementation": "eager"}
    plain: Any = AutoModelForSequenceClassification.from_pretrained(base, **attention)
    untrained = logits_of(plain)
    adapted = logits_of(PeftModel.from_pretrained(plain, folder / "adapter"))
    merged = logits_of(AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", **attention))
    np.testing.assert_allclose(merged, adapted, atol=1e-4)
    rounding = np.abs(merged - trained.logits).mean()
    assert 0 < rounding < 0.5 * np.abs(merged - untrained).mean()


@pytest.mark.long
def test_zero_3_trains_it_as_zero_2(base: Path, straight: tuple[Path, Run], tmp_path: Path) -> None:
    _, zero2 = straight
    zero3 = train(base, 3, tmp_path, overrides=FOUR_BITS)
    np.testing.assert_allclose(zero3.logits, zero2.logits, atol=1e-3)
