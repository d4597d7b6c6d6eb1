"""Ratings are those of the votes, whoever is called a, and the judge that knows only names is what they imply."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from core.records import LABELS, ORDERS, Conversation
from core.scoring import SCORES, SWAPPED
from eval.bootstrap import Resampling
from eval.judges.baselines import prior
from eval.judges.bradley_terry import bradley_terry
from eval.leaderboard import ANCHOR, POINTS, RIDGE, rank_correlation, ratings
from eval.metrics import flip_rate, log_loss_rows, predict

STRENGTHS = np.array([1.0, 0.5, 0.2, -0.3, -0.6, -0.8])
MODELS = [f"m{i}" for i in range(len(STRENGTHS))]


def simulate(rows: int, seed: int, tie: float = -0.5) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Games of models with `STRENGTHS` two to a prompt, the law of their outcomes [n, 3], and votes drawn from it."""
    rng = np.random.default_rng(seed)
    first, second = np.array([rng.choice(len(MODELS), 2, replace=False) for _ in range(rows)]).T
    strength = STRENGTHS[first] - STRENGTHS[second]
    law = softmax(np.stack([strength / 2, -strength / 2, np.full(rows, tie)], axis=1), axis=1)
    votes = np.eye(3)[(rng.random((rows, 1)) > law.cumsum(axis=1)).sum(axis=1)]
    sides = {"model_a": [MODELS[i] for i in first], "model_b": [MODELS[i] for i in second]}
    return pl.DataFrame({**sides, "group": [str(i // 2) for i in range(rows)]}), law, votes


def conversations(games: pl.DataFrame, votes: np.ndarray) -> list[Conversation]:
    return [
        Conversation(str(i), ["?"], ["a"], ["b"], row["model_a"], row["model_b"], vote.tolist(), row["group"])
        for i, (row, vote) in enumerate(zip(games.iter_rows(named=True), votes, strict=True))
    ]


def logits_of(scores: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    ab, ba = (scores.filter(order=order)["logits"].to_numpy() for order in ORDERS)
    return ab, ba


def test_planted_strengths_are_recovered() -> None:
    games, _, votes = simulate(30_000, 0, tie=-30)
    found = ratings(games, votes, Resampling(2, 0))
    expected = ANCHOR + POINTS * (STRENGTHS - STRENGTHS.mean())
    assert found.points == pytest.approx(expected, abs=12) and found.points.mean() == pytest.approx(ANCHOR)
    assert found.table()["model"].to_list() == MODELS and found.games.sum() == 2 * len(games)


def test_ratings_equal_a_weighted_logistic_regression_with_ties_as_two_halves() -> None:
    games, _, votes = simulate(200, 1)
    sides = [games[side].to_list() for side in ("model_a", "model_b")]
    design = np.array([[(m == a) - (m == b) for m in MODELS] for a, b in zip(*sides, strict=True)], dtype=float)
    won = votes[:, 0] + votes[:, 2] / 2
    regression = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(
        np.concatenate([design, design]), np.repeat([1, 0], 200), sample_weight=np.concatenate([won, 1 - won])
    )
    expected = ANCHOR + POINTS * (regression.coef_[0] - regression.coef_[0].mean())
    assert ratings(games, votes, Resampling(1, 0)).points == pytest.approx(expected, abs=1e-3)


def test_exchanging_the_sides_of_some_games_changes_no_rating() -> None:
    games, law, _ = simulate(300, 2)
    rows = np.random.default_rng(0).random(300) < 0.5
    some = pl.Series(rows)
    exchanged = games.with_columns(
        model_a=pl.when(some).then("model_b").otherwise("model_a"),
        model_b=pl.when(some).then("model_a").otherwise("model_b"),
    )
    before = ratings(games, law, Resampling(20, 1))
    after = ratings(exchanged, np.where(rows[:, None], law[:, SWAPPED], law), Resampling(20, 1))
    assert before.points == pytest.approx(after.points) and before.drawn == pytest.approx(after.drawn)


def test_intervals_cover_the_planted_strengths() -> None:
    truth = ANCHOR + POINTS * (STRENGTHS - STRENGTHS.mean())
    covered = []
    for seed in range(60):
        games, _, votes = simulate(400, seed, tie=-30)
        table = ratings(games, votes, Resampling(200, seed)).table().sort("model")
        covered += ((table["low"].to_numpy() <= truth) & (truth <= table["high"].to_numpy())).tolist()
    assert 0.9 < np.mean(covered) < 0.99


def test_a_model_that_always_wins_has_a_finite_rating_and_one_seen_once_an_interval() -> None:
    games = pl.DataFrame(
        {"model_a": ["best"] * 9 + ["rare"], "model_b": ["other"] * 10, "group": [str(i) for i in range(10)]}
    )
    table = ratings(games, np.tile([1.0, 0, 0], (10, 1)), Resampling(50, 0)).table()
    assert table["model"][-1] == "other" and table.select(pl.col("rating", "low", "high").is_finite().all()).row(0)
    assert table["rating"].max() < 3000  # type: ignore[operator]


def test_rank_correlation_is_one_with_oneself_and_falls_with_noise() -> None:
    games, law, votes = simulate(600, 3)
    rng = np.random.default_rng(0)
    human = ratings(games, votes, Resampling(60, 4))
    close = rank_correlation(ratings(games, law, Resampling(60, 4)), human)
    blind = rank_correlation(ratings(games, rng.dirichlet([1, 1, 1], 600), Resampling(60, 4)), human)
    oneself = rank_correlation(human, human)
    for name in ("kendall", "spearman"):
        assert [getattr(oneself, name), *getattr(oneself, f"{name}_ci")] == pytest.approx([1, 1, 1])
        value, (low, high) = getattr(close, name), getattr(close, f"{name}_ci")
        assert getattr(blind, name) + 0.3 < value and low <= value <= high <= 1 and low < 1
    level = ratings(games, np.tile([0.0, 0, 1], (600, 1)), Resampling(60, 4))
    assert {*vars(rank_correlation(level, human)).values()} == {None}, "all models in one place"


def test_games_without_a_name_are_refused() -> None:
    games, _, votes = simulate(5, 0)
    nameless = games.with_columns(model_b=pl.when(pl.int_range(5) == 3).then(None).otherwise("model_b"))
    with pytest.raises(ValueError, match="1 of 5 conversations lack a model's name"):
        ratings(nameless, votes, Resampling(1, 0))


def test_the_judge_of_names_comes_close_to_the_law_and_beats_the_prior() -> None:
    train, held_out = (conversations(*(simulate(4_000, seed)[i] for i in (0, 2))) for seed in (5, 6))
    _, law, votes = simulate(4_000, 6)
    scores = bradley_terry(train, held_out)
    ab, ba = logits_of(scores)
    assert scores.schema == {name: SCORES[name] for name in ("id", "order", "logits")}
    assert flip_rate(ab, ba) == 0 and predict(ab, ba) == pytest.approx(law, abs=0.04)
    losses = [log_loss_rows(p, votes).mean() for p in (predict(ab, ba), predict(*logits_of(prior(train, held_out))))]
    assert losses[0] < losses[1] - 0.05


def test_the_judge_of_names_exchanges_with_the_sides() -> None:
    train, held_out = (conversations(*(simulate(100, seed)[i] for i in (0, 2))) for seed in (5, 6))
    ab, _ = logits_of(bradley_terry(train, held_out))
    swapped, _ = logits_of(bradley_terry([c.swap() for c in train], [c.swap() for c in held_out]))
    assert swapped[:, SWAPPED] == pytest.approx(ab, abs=1e-3)


def test_unseen_models_are_level_and_nameless_conversations_get_the_prior() -> None:
    train = conversations(*(simulate(500, 7)[i] for i in (0, 2)))
    held_out = [
        replace(c, id=str(i), model_a=a, model_b=b)
        for i, (c, a, b) in enumerate(zip(train, ["new", "m0", None, "m0"], ["newer", "new", "m1", "m5"], strict=False))
    ]
    found, expected = (predict(*logits_of(judge(train, held_out))) for judge in (bradley_terry, prior))
    tie = LABELS.index("tie")
    assert found[0, 0] == pytest.approx(found[0, 1])
    assert found[1, 0] > found[1, 1] and found[3, 0] > found[1, 0], "an unseen model is an average one"
    assert found[2] == pytest.approx(expected[2])
    assert found[0, tie] == pytest.approx(np.mean([c.votes[tie] for c in train if c.votes]), abs=0.05)
    nameless = [replace(c, model_a=None) for c in train]
    assert bradley_terry(nameless, held_out).equals(prior(nameless, held_out))
    assert bradley_terry([*train, replace(train[0], votes=None)], held_out).equals(bradley_terry(train, held_out))
