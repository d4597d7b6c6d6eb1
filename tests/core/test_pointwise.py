"""Rewards of single responses as logits: what a wrapped scorer answers, and how often it asks."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from core import pointwise
from core.errors import UserError
from core.labels import NO_TIE
from core.pointwise import Choice, PointwiseScorer, check_kind, choice_of, noted
from core.prompts import PromptConfig, Renderer, ResponseIds
from core.records import Conversation
from core.scoring import logits_by_order, score_conversations
from tests.composing import configured
from tests.tiny_models import tiny_tokenizer

CHOICE = Choice(1.5, -0.25, 1.0)


class CountingScorer:
    """The reward is the sum of a prompt's ids; a few prompts are held, and finished in any order."""

    tokens_cached = 0

    def __init__(self, seed: int, outputs: int = 1):
        self.asked: list[tuple[int, ...]] = []
        self._rng, self._outputs = random.Random(seed), outputs

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        waiting = enumerate(prompts)
        held = list(islice(waiting, 3))
        while held:
            place, ids = held.pop(self._rng.randrange(len(held)))
            self.asked.append(tuple(ids))
            yield place, np.full(self._outputs, sum(ids) / 1000, np.float32)
            held += islice(waiting, self._rng.randrange(3))
            held = held or list(islice(waiting, 3))


@pytest.fixture(scope="module")
def prompt() -> PromptConfig:
    return configured("+exp=smoke", "prompt=pointwise", "prompt.max_tokens=96").prompt


@pytest.fixture(scope="module")
def renderer(prompt: PromptConfig, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return Renderer(prompt, folder)


def ranked(responses: int) -> list[Conversation]:
    """All pairs of so many responses to one question, the two the other way round among them, and each with itself."""
    texts = [f"answer {'very ' * i}good {i}" for i in range(responses)]
    return [Conversation(f"{i}-{j}", ["Why?"], [a], [b]) for i, a in enumerate(texts) for j, b in enumerate(texts)]


@pytest.mark.parametrize("seed", range(5))
def test_each_response_is_asked_once_and_no_order_matters(renderer: Renderer, seed: int) -> None:
    rows, inner = ranked(6), CountingScorer(seed)
    scorer = PointwiseScorer(inner, CHOICE)
    scores = score_conversations(scorer, renderer, rows)
    assert len(inner.asked) == 6 == len(set(inner.asked))
    assert scores["prompt_tokens"].sum() == scorer.tokens_cached + sum(map(len, inner.asked))
    first, second = logits_by_order(scores, [c.id for c in rows])
    assert np.array_equal(first, second)
    prompts = {(p.id, p.order): sum(p.ids) / 1000 for p in renderer.render(rows)}
    a, b = (np.array([prompts[c.id, order] for c in rows]) for order in ("ab", "ba"))
    weights = np.column_stack([np.exp(1.5 * a), np.exp(1.5 * b), np.full(len(rows), np.exp(-0.25))])
    np.testing.assert_allclose(softmax(first, axis=1), weights / weights.sum(axis=1, keepdims=True), atol=1e-5)


def test_what_a_stream_forgets_is_asked_again_and_right(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ranked(6)
    expected = score_conversations(PointwiseScorer(CountingScorer(0), CHOICE), renderer, rows)
    monkeypatch.setattr(pointwise, "KNOWN", 2)
    for seed in range(5):
        inner = CountingScorer(seed)
        assert score_conversations(PointwiseScorer(inner, CHOICE), renderer, rows).equals(expected)
        assert 6 < len(inner.asked) <= 72


def test_a_response_s_prompt_is_the_same_whatever_it_stands_beside(renderer: Renderer, prompt: PromptConfig) -> None:
    long, short = " ".join(f"word{i}" for i in range(300)), "No."
    rows = [
        Conversation("1", ["Why?", "And?"], [long, short], [short, short]),
        Conversation("2", ["Why?", "And?"], [short, long], [long, short]),
    ]
    shown = {(p.id, p.order): p for p in renderer.render(rows)}
    assert shown["1", "ab"].ids == shown["2", "ba"].ids != shown["1", "ba"].ids
    assert all(len(p.ids) <= prompt.max_tokens and p.truncated for p in shown.values())
    for p in shown.values():
        assert isinstance(p.ids, ResponseIds) and p.ids.other == shown[p.id, "ba" if p.order == "ab" else "ab"].ids


def test_a_privileged_teacher_is_told_whose_response_it_is(renderer: Renderer, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    telling = Renderer(replace(renderer.config, show_models=True, max_tokens=160), tmp_path)
    shown = telling.render([Conversation("1", ["Why?"], ["So."], ["No."], model_a="alpha", model_b="beta")])
    texts = [tokenizer.decode(p.ids) for p in shown]
    assert ["alpha" in text for text in texts] == [True, False] and ["beta" in text for text in texts] == [False, True]
    assert telling.hashes["template"] == renderer.hashes["template"]


def test_empty_responses_have_a_reward(renderer: Renderer) -> None:
    rows = [Conversation("1", [""], [""], [""]), Conversation("2", ["Why?"], [""], ["Because."])]
    scores = score_conversations(PointwiseScorer(CountingScorer(0), CHOICE), renderer, rows)
    assert np.isfinite(scores["logits"].to_numpy()).all()
    assert scores.filter(id="1")["logits"].to_list()[0][:2] == [0, 0]


def test_another_number_of_outputs_is_refused(renderer: Renderer) -> None:
    with pytest.raises(UserError, match="one output, its scorer gave 3"):
        score_conversations(PointwiseScorer(CountingScorer(0, outputs=3), CHOICE), renderer, ranked(2))


@pytest.mark.parametrize("log_tie", [-0.7, -30.0])
def test_what_is_noted_is_read_back(log_tie: float) -> None:
    choice = Choice(2.5, log_tie, 0.75)
    note = noted(choice)
    assert (note["choice"]["log_tie"] is None) == (log_tie == -30)
    assert choice_of({"hidden_size": 64, **note}) == choice
    assert choice_of({"hidden_size": 64}) is None


def test_judges_of_an_earlier_version_have_no_height() -> None:
    former = {"scale": 2.5, "log_tie": None}
    assert choice_of({"pointwise": former}) == Choice(2.5, NO_TIE)
    tying = {"pointwise": {**former, "log_tie": -0.5}}
    assert choice_of(tying) == Choice(2.5, -0.5, 0.0)
    assert choice_of({**tying, **noted(CHOICE)}) == CHOICE, "a judge that went on from it"


def test_rewards_of_one_height_tie_as_often_as_that_height_says() -> None:
    rewards = np.array([-2.0, 0.0, 2.0])
    for height in (0.0, 0.4, 1.0):
        ties = softmax(Choice(1.0, 0.5, height).logits(rewards, rewards), axis=1)[:, 2]
        assert ties == pytest.approx(np.exp(0.5) / (np.exp(0.5) + 2 * np.exp(height * rewards)))
    without = Choice(1.0, NO_TIE).logits(rewards, rewards[::-1])
    assert np.array_equal(without[:, 2], np.full(3, NO_TIE)) and without[:, 0] == pytest.approx([-2.0, 0.0, 2.0])


def test_a_judge_and_prompts_of_different_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no pointwise judge"):
        check_kind(tmp_path, pointwise=True)
    (tmp_path / "config.json").write_text('{"pointwise": {"scale": 1.0, "log_tie": null}}')
    with pytest.raises(UserError, match="prompt=pointwise"):
        check_kind(tmp_path, pointwise=False)
