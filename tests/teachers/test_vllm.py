import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from distill.config import ScorerConfig
from students.quantising import quantise_w8a8
from teachers.scorers import open_scorer
from teachers.transformers import TransformersScorer
from teachers.vllm import VllmScorer

MAX_TOKENS = 256
VLLM = ScorerConfig(backend="vllm", dtype="auto", batch_tokens=512, vllm={"enable_prefix_caching": True})
REFERENCE = ScorerConfig(backend="transformers", dtype="auto", batch_tokens=512, vllm={})


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Prompts of 1 to 256 tokens: families of a shared beginning, a repeated one, some ending in pad or eos."""
    rng = np.random.default_rng(0)
    stems = rng.integers(0, 560, size=(3, 128)).tolist()
    rows = [stem[: rng.integers(0, 128)] + rng.integers(0, 560, rng.integers(1, 126)).tolist() for stem in stems * 12]
    return [*rows, rows[0], [*rows[1], 2], [*rows[2], 1, 2], rng.integers(0, 560, MAX_TOKENS).tolist()]


def engine_processes() -> list[str]:
    return [child.name() for child in psutil.Process().children(recursive=True) if "VLLM" in child.name()]  # or zombies


@pytest.fixture(scope="class")
def scorer(tiny_judge_llama: Path) -> Iterator[VllmScorer]:
    with open_scorer(tiny_judge_llama, VLLM, MAX_TOKENS) as scorer:
        assert isinstance(scorer, VllmScorer)
        yield scorer
    assert not engine_processes()


@pytest.mark.timeout(900)  # an engine takes half a minute to start, on a busy machine several
class TestFloat:
    def test_equals_transformers(self, scorer: VllmScorer, tiny_judge_llama: Path, prompts: list[list[int]]) -> None:
        expected = TransformersScorer(tiny_judge_llama, REFERENCE).score(prompts)
        found = scorer.score(prompts)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-4
        assert np.abs(scorer.score(prompts) - expected).max() < 1e-4  # now out of the prefix cache

    def test_order_of_prompts_is_kept(self, scorer: VllmScorer, prompts: list[list[int]]) -> None:
        order = np.random.default_rng(1).permutation(len(prompts))
        assert np.abs(scorer.score([prompts[i] for i in order]) - scorer.score(prompts)[order]).max() < 1e-4

    def test_refuses_prompts_of_the_wrong_length(self, scorer: VllmScorer) -> None:
        with pytest.raises(ValueError, match=f"prompt 1 has 257 tokens, this scorer takes 1 to {MAX_TOKENS}"):
            scorer.score([[5], [5] * (MAX_TOKENS + 1)])
        with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
            scorer.score([[]])
        assert scorer.score([]).shape == (0, 3)


def round_as_vllm_does(linear: torch.nn.Linear) -> None:
    """Round the layer's input to int8 with the step max|x| / 127; compressed-tensors takes max|x| / 127.5."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        return torch.nn.functional.linear((x / step).round() * step, linear.weight, linear.bias)

    linear.forward = forward  # type: ignore[method-assign]


@pytest.mark.timeout(900)
def test_int8_engine_agrees_with_fake_quantised_transformers(
    tiny_judge_llama: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    quantise_w8a8(tiny_judge_llama, tmp_path / "w8a8")
    reference = TransformersScorer(tmp_path / "w8a8", REFERENCE)
    expected = reference.score(prompts)
    environment = dict(os.environ)
    with open_scorer(tmp_path / "w8a8", VLLM, MAX_TOKENS) as scorer:
        found = scorer.score(prompts)
    assert not engine_processes() and os.environ == environment
    # 0.4% between the steps turn many a rounding, so the two differ as much as each does from the unquantised judge:
    # by 0.05 on average, where logits have a standard deviation of 2. With one step they agree but for a few roundings.
    assert np.abs(found - expected).mean() < 0.1
    for name, module in reference.model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "score":
            round_as_vllm_does(module)
    assert np.abs(found - reference.score(prompts)).mean() < 0.01


@pytest.mark.timeout(300)
def test_names_engine_arguments_that_vllm_does_not_have(tiny_judge_llama: Path) -> None:
    config = ScorerConfig(backend="vllm", dtype="auto", batch_tokens=512, vllm={"gpu_memory": 0.9})
    with pytest.raises(ValueError, match="gpu_memory"), open_scorer(tiny_judge_llama, config, MAX_TOKENS):
        pass
