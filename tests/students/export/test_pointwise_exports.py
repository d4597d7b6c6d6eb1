"""What loads reward models loads a pointwise judge, with the same rewards: transformers, vLLM's /classify and TRL."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from core.models.folders import copy_tokenizer
from core.pointwise import Choice, choice_in, noted
from core.prompts import Renderer
from core.scoring import score, score_conversations
from students.export.config import QuantisationConfig
from students.export.quantising import quantise
from teachers.scorers.int8 import multiplies_exactly
from teachers.scorers.opening import open_scorer
from tests.composing import configured, scorer
from tests.teachers.scorers.test_server import vllm_serve

pytestmark = [pytest.mark.long, pytest.mark.timeout(580)]
CHOICE = Choice(1.25, -0.5)
Exports = dict[str, Path]


@pytest.fixture(scope="module")
def exports(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """SmolLM2's first layers under a head of rewards, as they are and in int8."""
    merged, w8a8 = (tmp_path_factory.mktemp("exports") / name for name in ("merged", "w8a8"))
    model = AutoModelForSequenceClassification.from_pretrained(
        smollm2, num_hidden_layers=4, id2label={0: "reward"}, label2id={"reward": 0}, dtype=torch.float32
    )
    torch.nn.init.normal_(model.score.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    model.config.update(noted(CHOICE))
    model.save_pretrained(merged)
    copy_tokenizer(smollm2, merged)
    quantise(merged, w8a8, "w8a8", QuantisationConfig(smoothing=None, group=None), [])
    return {"merged": merged, "w8a8": w8a8}


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    renderer = Renderer(configured("+exp=demo_pointwise").prompt, smollm2)
    return [[*p.ids] for p in renderer.render(simulate(SimulateConfig(12, seed=1))[0])]


def rewards(folder: Path, prompts: list[list[int]]) -> np.ndarray:
    """As our own scorer has them: [prompts]."""
    config = scorer("transformers", dtype="fp32")
    with open_scorer(folder, config, max(map(len, prompts)), judges=False) as opened:
        return score(opened, prompts)[:, 0]


def assert_same_rewards(format: str, found: np.ndarray, exports: Exports, prompts: list[list[int]]) -> None:
    """To 1e-3; in int8, where engines round otherwise, they scatter by no more than int8 itself has moved them."""
    expected, exact = rewards(exports[format], prompts), rewards(exports["merged"], prompts)
    if format == "merged":
        np.testing.assert_allclose(found, exact, atol=1e-3)
    else:
        scatter, loss = (np.sqrt(np.mean((of - expected) ** 2)) for of in (found, exact))
        assert 0 < loss < 0.2 * exact.std() + 0.2 and scatter < 2 * loss


def as_classifier_gives(model: Any, prompts: list[list[int]]) -> np.ndarray:
    """A batch of transformers' own, padded on the right, through its own pooling."""
    width, pad = max(map(len, prompts)), model.config.pad_token_id
    ids = torch.tensor([p + [pad] * (width - len(p)) for p in prompts])
    mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
    with torch.inference_mode():
        return np.asarray(model(input_ids=ids, attention_mask=mask).logits[:, 0].float())


@pytest.mark.parametrize("format", ["merged", "w8a8"])
def test_transformers_loads_it(format: str, exports: Exports, prompts: list[list[int]]) -> None:
    folder = exports[format]
    assert choice_in(folder) == CHOICE
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.num_labels == 1
    assert_same_rewards(format, as_classifier_gives(model, prompts), exports, prompts)


def test_vllm_gives_the_same_rewards(exports: Exports, prompts: list[list[int]], tmp_path: Path) -> None:
    format = "w8a8" if multiplies_exactly() else "merged"  # other CPUs cut vLLM's products of int8
    with vllm_serve(exports[format], tmp_path / "log", "--runner", "pooling", "--max-model-len", "256") as url:
        body = {"model": str(exports[format]), "input": prompts, "use_activation": False}
        answer = httpx.post(f"{url}/classify", json=body, timeout=120).json()
    found = np.array([item["probs"][0] for item in sorted(answer["data"], key=lambda item: item["index"])])
    assert_same_rewards(format, found, exports, prompts)


def test_our_own_vllm_gives_the_logits_of_a_judge(exports: Exports, smollm2: Path) -> None:
    renderer, rows = (
        Renderer(configured("+exp=demo_pointwise").prompt, smollm2),
        simulate(SimulateConfig(12, seed=1))[0],
    )
    found = []
    for name in ("vllm", "transformers"):
        with open_scorer(exports["merged"], scorer(name, dtype="fp32"), renderer.config.max_tokens) as opened:
            found.append(score_conversations(opened, renderer, rows))
    np.testing.assert_allclose(*(of["logits"].to_numpy() for of in found), atol=1e-3)


@pytest.mark.parametrize("format", ["merged", "w8a8"])
def test_trl_takes_it_as_a_reward(
    format: str, exports: Exports, prompts: list[list[int]], smollm2: Path, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl", reason="needs TRL: pip install --no-deps trl==1.16.0")
    datasets = pytest.importorskip("datasets")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    trainer = trl.GRPOTrainer(
        model=str(smollm2),
        reward_funcs=str(exports[format]),
        args=trl.GRPOConfig(str(tmp_path), use_cpu=True, report_to=[], bf16=False, num_generations=2),
        train_dataset=datasets.Dataset.from_list([{"prompt": "Why?"}] * 8),
        processing_class=tokenizer,
    )
    (model,) = trainer.reward_funcs
    assert model.config.num_labels == 1
    assert_same_rewards(format, as_classifier_gives(model.eval(), prompts), exports, prompts)
