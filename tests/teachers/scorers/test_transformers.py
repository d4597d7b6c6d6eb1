import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from core.scoring import score
from teachers.scorers.opening import open_scorer
from teachers.scorers.transformers import TransformersScorer, batches_by_length, fastest_dtype
from tests.composing import scorer
from tests.tiny_models import FAMILIES, Family, tiny_judge

pytestmark = pytest.mark.timeout(300)
CONFIG = scorer("transformers", batch_tokens=512)
TOLERANCE = 2e-5  # logits are of the order of 2: other shapes, other summation order
EOS, PAD = 1, 2


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to 200 tokens; eos and pad are among their ids, and end some of them."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 560, size=rng.integers(1, 200)).tolist() for _ in range(count)]
    for prompt, ending in zip(prompts, ([PAD], [PAD, PAD], [EOS], [EOS, PAD]), strict=False):
        prompt += ending
    return prompts


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_one_row_at_a_time(family: Family, tmp_path: Path) -> None:
    folder = tiny_judge(tmp_path, family)
    prompts = random_prompts(24)
    found = score(TransformersScorer(folder, CONFIG), prompts)
    # Eager attention is the definition; sdpa has no softcap, which Gemma-2 needs.
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        hidden = [model.base_model(torch.tensor([prompt])).last_hidden_state[0, -1] for prompt in prompts]
        expected = model.score(torch.stack(hidden)).numpy()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < TOLERANCE
    assert np.ptp(expected, axis=0).min() > 0.5  # the rows differ, so a mixed-up order would show


def test_order_of_prompts_is_kept(tiny_judge_llama: Path) -> None:
    judge = TransformersScorer(tiny_judge_llama, CONFIG)
    prompts = random_prompts(24)
    order = np.random.default_rng(1).permutation(len(prompts))
    shuffled = score(judge, [prompts[i] for i in order])
    assert np.abs(shuffled - score(judge, prompts)[order]).max() < TOLERANCE


def test_pad_and_eos_in_a_prompt_do_not_move_the_pooled_position(tiny_judge_llama: Path) -> None:
    judge = TransformersScorer(tiny_judge_llama, CONFIG)
    stem = random_prompts(8)[-1]
    ended = [stem, [*stem, EOS], [*stem, PAD], [*stem, PAD, PAD]]
    together = score(judge, ended)
    alone = np.concatenate([score(judge, [prompt]) for prompt in ended])
    assert np.abs(together - alone).max() < TOLERANCE
    assert min(np.abs(a - b).max() for a, b in combinations(together, 2)) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_as_it_is_loaded_spares_the_head_and_stays_near(family: Family, tmp_path: Path) -> None:
    judge = tiny_judge(tmp_path, family)
    int8 = TransformersScorer(judge, scorer("transformers", load_in_8bit=True))
    types = {name: module.weight.dtype for name, module in int8.model.named_modules() if hasattr(module, "weight")}
    assert {name for name, dtype in types.items() if dtype == torch.int8} == {n for n in types if n.endswith("_proj")}
    prompts = random_prompts(8)
    moved = np.abs(score(int8, prompts) - score(TransformersScorer(judge, CONFIG), prompts))
    assert 0 < moved.mean() < 0.1


def test_int8_of_what_is_quantised_already(tiny_judge_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_judge_llama, tmp_path / "quantised")
    config = json.loads((tiny_judge_llama / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "compressed-tensors"}}
    (tmp_path / "quantised/config.json").write_text(json.dumps(quantised))
    with pytest.raises(ValueError, match=r"load_in_8bit=true: .* is quantised already"):
        TransformersScorer(tmp_path / "quantised", scorer("transformers", load_in_8bit=True))


@pytest.mark.parametrize(
    ("device", "stored", "computed"),
    [("cpu", "float16", "float32"), ("cuda", "float16", "float16"), ("cuda", "float32", "bfloat16")],
)
def test_what_is_stored_in_fp16_is_computed_so_on_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, stored: str, computed: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    found = fastest_dtype(torch.device(device), PretrainedConfig(dtype=stored))
    assert found == getattr(torch, computed)


def test_nothing_to_score(tiny_judge_llama: Path) -> None:
    assert score(TransformersScorer(tiny_judge_llama, CONFIG), []).shape == (0, 3)


@given(st.lists(st.integers(1, 300)), st.integers(1, 1000))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = batches_by_length(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == [*range(len(lengths))]
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget for batch in batches)
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths, reverse=True)


def test_refuses_folders_that_are_no_judge(tiny_llama: Path, tiny_judge_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"), open_scorer(tmp_path, CONFIG, 64):
        pass
    with pytest.raises(ValueError, match="LlamaForCausalLM"), open_scorer(tiny_llama, CONFIG, 64):
        pass
    config = json.loads((tiny_judge_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"0": "b", "1": "a", "2": "tie"}}))
    with pytest.raises(ValueError, match=r"\['b', 'a', 'tie'\]"), open_scorer(tmp_path, CONFIG, 64):
        pass
