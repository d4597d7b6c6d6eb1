"""Answers are kept, but for those of servers, whose model may have changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from core.prompts import Renderer
from eval.judges import predictions as module
from teachers.scorers.transformers import TransformersScorer
from tests.composing import configured, scorer


@pytest.mark.parametrize(("backend", "asked"), [("transformers", 1), ("server", 2)])
def test_a_server_is_asked_again_and_a_model_s_folder_is_not(
    backend: str, asked: int, tiny_judge_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    @contextmanager
    def open_scorer(model: Path, config: Any, max_tokens: int, **others: Any) -> Iterator[TransformersScorer]:
        opened.append(config)
        yield TransformersScorer(model, scorer("transformers"))

    monkeypatch.setattr(module, "open_scorer", open_scorer)
    renderer = Renderer(configured("+exp=smoke").prompt, tiny_judge_llama)
    conversations = simulate(SimulateConfig(2, seed=1))[0]
    settings = scorer(backend, urls=["http://localhost:1"]) if backend == "server" else scorer(backend)
    first, second = (
        module.predictions(tiny_judge_llama, "content", renderer, settings, conversations, tmp_path) for _ in range(2)
    )
    assert len(opened) == asked and first.scores.equals(second.scores)
