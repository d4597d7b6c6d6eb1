"""What opening a scorer promises, whoever opens it."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.scoring import score
from teachers.scorers.opening import open_scorer
from tests.composing import scorer
from tests.device import Device

PROMPTS = [[5, 6, 7], [8, 9]]


@pytest.mark.long
def test_a_closed_scorer_holds_no_model(tiny_judge_llama: Path, tiny_w8a8: Path, device: Device) -> None:
    """int8 layers refer to themselves, so that dropping the model is not enough; and the caller keeps the scorer."""
    kept = []
    for folder in (tiny_w8a8, tiny_judge_llama, tiny_w8a8):
        with open_scorer(folder, scorer("transformers"), 64) as opened:
            kept.append(opened)
            assert score(opened, PROMPTS).shape == (2, 3) and device.models_alive == 1
    device.check_left_free(scorers=3)


def test_a_failure_leaves_the_device_free_too(tiny_judge_llama: Path, device: Device) -> None:
    with (
        pytest.raises(UserError, match="no tokens") as failure,
        open_scorer(tiny_judge_llama, scorer("transformers"), 64) as opened,
    ):
        score(opened, [[]])
    assert failure.traceback  # whose frames hold the scorer
    device.check_left_free(scorers=1)


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [({}, 1), ({"tensor_parallel_size": 8}, 8), ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 8)],
)
def test_an_engine_spans_the_product_of_its_parallel_sizes(arguments: dict[str, Any], gpus: int) -> None:
    assert scorer("vllm", engine_args=arguments).gpus_spanned == gpus


@pytest.mark.parametrize("size", [0, -1, None, "two", 1.5])
def test_an_engine_on_no_gpu_is_refused(size: object, tiny_judge_llama: Path) -> None:
    config = scorer("vllm", engine_args={"tensor_parallel_size": size})
    refused = pytest.raises(UserError, match=rf"tensor_parallel_size={size}: give a number of GPUs, 1 or more")
    with refused, open_scorer(tiny_judge_llama, config, 64):
        pass
