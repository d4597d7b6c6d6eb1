"""Mixing teachers: temperatures are found on other folds' votes, weights and spaces mean what they say."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

from core.records import ORDERS, TEST, Conversation
from core.store.parts import NO_FOLD
from teachers.mixtures import Mixing, fit_temperature, judges_of, mix, shares, temperatures

PLAIN = Mixing(teachers=["one", "two"], weights=[3.0, 1.0], space="logits", temperature_scaling=False)


def voted(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(true logits, one vote a row drawn from them)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 3))
    return logits, np.array([rng.multinomial(1, p) for p in softmax(logits, 1)], dtype=float)


def conversations(votes: np.ndarray | None, count: int) -> list[Conversation]:
    counts = [None] * count if votes is None else votes.tolist()
    return [Conversation(f"c{i}", ["q"], ["x"], ["y"], votes=counts[i], fold=i % 3) for i in range(count)]


def table(logits: np.ndarray) -> pl.DataFrame:
    ids = [f"c{i}" for i in range(len(logits)) for _ in ORDERS]
    return pl.DataFrame(
        {"id": ids, "order": [*ORDERS] * len(logits), "logits": np.repeat(logits, 2, axis=0).astype(np.float32)},
        schema_overrides={"logits": pl.Array(pl.Float32, 3)},
    )


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_the_temperature_that_was_planted_is_found(temperature: float) -> None:
    logits, votes = voted(20000)
    assert fit_temperature(logits * temperature, votes) == pytest.approx(temperature, rel=0.05)


def test_a_fold_s_own_votes_do_not_move_its_temperature() -> None:
    logits, votes = voted(300)
    rows = conversations(votes, 300)
    before = temperatures(logits, rows)
    changed = [replace(c, votes=[0.0, 0.0, 1.0]) if c.fold == 1 else c for c in rows]
    after = temperatures(logits, changed)
    own = np.array([c.fold == 1 for c in rows])
    assert (before[own] == after[own]).all() and (before[~own] != after[~own]).all()


def test_votes_are_needed_to_fit_a_temperature() -> None:
    with pytest.raises(ValueError, match="no votes outside fold 0"):
        temperatures(np.zeros((6, 3)), conversations(None, 6))


def test_weights_and_spaces() -> None:
    one, two = voted(50, 1)[0], voted(50, 2)[0]
    teachers = {"one": table(one), "two": table(two)}
    found, fitted = mix(teachers, conversations(None, 50), PLAIN)
    expected = log_softmax(0.75 * log_softmax(one, 1) + 0.25 * log_softmax(two, 1), 1)
    assert np.abs(found - expected[:, None]).max() < 1e-5 and fitted["one"] == [1.0, 1.0, 1.0]
    found, _ = mix(teachers, conversations(None, 50), replace(PLAIN, space="probabilities"))
    assert np.abs(np.exp(found) - (0.75 * softmax(one, 1) + 0.25 * softmax(two, 1))[:, None]).max() < 1e-6


def test_a_constant_added_to_a_teacher_s_logits_changes_nothing() -> None:
    one, two = voted(50, 1)[0], voted(50, 2)[0]
    rows = conversations(None, 50)
    found, _ = mix({"one": table(one), "two": table(two)}, rows, PLAIN)
    shifted, _ = mix({"one": table(one - 40), "two": table(two + 7)}, rows, PLAIN)
    assert np.abs(found - shifted).max() < 1e-4


def test_temperatures_make_a_mixture_with_an_overconfident_teacher_better() -> None:
    logits, votes = voted(3000)
    noisy = logits + np.random.default_rng(9).normal(size=logits.shape)
    rows = conversations(votes, 3000)
    teachers = {"one": table(4 * logits), "two": table(noisy)}

    def loss(config: Mixing) -> float:
        return float(-(votes * mix(teachers, rows, config)[0][:, 0]).sum(1).mean())

    assert loss(replace(PLAIN, temperature_scaling=True)) < loss(PLAIN) - 0.02


def test_a_teacher_that_does_not_cover_all_is_named() -> None:
    logits = voted(10)[0]
    teachers = {"one": table(logits), "two": table(logits[:8])}
    with pytest.raises(
        ValueError, match=r"teacher 'two' of the mixture: order ab: 2 of 10 conversations have no logits"
    ):
        mix(teachers, conversations(None, 10), PLAIN)


@pytest.mark.parametrize("weights", [[1.0], []])
def test_each_teacher_needs_a_weight(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="as many weights"):
        shares(replace(PLAIN, weights=weights))
    assert shares(replace(PLAIN, weights=None)) == [0.5, 0.5]


def test_texts_that_some_voted_on_have_one_judge_in_all_sources() -> None:
    """A pair may come from two sources, with a vote and without; its teachers are those of its fold both times."""
    rows = [
        Conversation("voted", ["q"], ["x"], ["y"], votes=[1.0, 0.0, 0.0], fold=1),
        Conversation("copy", ["q"], ["x"], ["y"], fold=1),
        Conversation("pseudo", ["p"], ["x"], ["y"], fold=1),
        Conversation("tested", ["t"], ["x"], ["y"], votes=[1.0, 0.0, 0.0], fold=TEST),
    ]
    assert judges_of(rows) == {"voted": 1, "copy": 1, "pseudo": NO_FOLD, "tested": NO_FOLD}


def test_votes_of_the_test_split_fit_no_temperature() -> None:
    logits, votes = voted(300)
    rows = [replace(c, fold=TEST) if i % 5 == 0 else c for i, c in enumerate(conversations(votes, 300))]
    changed = [replace(c, votes=[0.0, 0.0, 1.0]) if c.fold == TEST else c for c in rows]
    assert (temperatures(logits, rows) == temperatures(logits, changed)).all()
