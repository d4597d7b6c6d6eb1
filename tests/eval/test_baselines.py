"""The baselines know what they should, no more, and do not care which side is called a."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from core.data.public import public_folder
from core.records import LABELS, ORDERS, Conversation
from core.scoring import SCORES, SWAPPED
from eval.judges.baselines import prior, surface
from eval.metrics import flip_rate, log_loss_rows, predict
from eval.surface_features import surface_features
from tests.running import ROOT

PANDALM = ROOT / public_folder() / "pandalm_testset" / "lmsys_schema.csv"

VOTES: list[list[float] | None] = [[1, 0, 0], [3, 1, 0], [2, 2, 0], None]


def simulate(rows: int, seed: int) -> list[Conversation]:
    """People prefer the longer answer, and call answers of about one length a tie."""
    rng = np.random.default_rng(seed)
    conversations = []
    for i in range(rows):
        a, b = rng.integers(5, 60, size=2)
        chances = np.exp([0.1 * (a - b), 0.1 * (b - a), 1 - 0.1 * abs(a - b)])
        votes = np.eye(3)[rng.choice(3, p=chances / chances.sum())]
        first, second = ["word " * a], ["word " * b]
        conversations.append(
            Conversation(f"{seed}-{i}", ["question?"], first, second, votes=votes.tolist(), group=str(i))
        )
    return conversations


def logits_of(scores: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    ab, ba = (scores.filter(order=order).sort("id")["logits"].to_numpy() for order in ORDERS)
    return ab, ba


def mean_loss(scores: pl.DataFrame, held_out: list[Conversation]) -> float:
    votes = np.array([c.votes for c in sorted(held_out, key=lambda c: c.id)])
    return float(log_loss_rows(predict(*logits_of(scores)), votes).mean())


@pytest.mark.parametrize("baseline", [prior, surface])
def test_scores_have_the_columns_of_a_judge_and_cover_both_orders(baseline) -> None:  # type: ignore[no-untyped-def]
    train, held_out = simulate(60, 0), simulate(9, 1)
    scores = baseline(train, held_out)
    assert scores.schema == {name: SCORES[name] for name in ("id", "order", "logits")}
    assert set(scores.select("id", "order").rows()) == {(c.id, order) for c in held_out for order in ORDERS}
    assert scores.height == 2 * len(held_out)


def test_prior_is_the_measured_vote_shares_in_both_orders() -> None:
    train = [replace(c, votes=v) for c, v in zip(simulate(4, 0), VOTES, strict=True)]
    ab, ba = logits_of(prior(train, simulate(2, 1)))
    assert np.exp(ab) == pytest.approx(np.tile([3.25 / 6, 1.75 / 6, 1 / 6], (2, 1)))
    assert (ab == ba).all() and flip_rate(ab, ba) == 0


@pytest.mark.parametrize("baseline", [prior, surface])
def test_exchanging_the_sides_exchanges_the_logits(baseline) -> None:  # type: ignore[no-untyped-def]
    train, held_out = simulate(80, 0), simulate(20, 1)
    ab, ba = logits_of(baseline(train, held_out))
    swapped_ab, swapped_ba = logits_of(baseline([c.swap() for c in train], [c.swap() for c in held_out]))
    assert swapped_ab[:, SWAPPED] == pytest.approx(ba, abs=1e-4)
    assert swapped_ba[:, SWAPPED] == pytest.approx(ab, abs=1e-4)


def test_surface_finds_a_planted_length_effect_without_position_bias() -> None:
    train, held_out = simulate(600, 0), simulate(300, 1)
    scores = surface(train, held_out)
    assert mean_loss(scores, held_out) < mean_loss(prior(train, held_out), held_out) - 0.15
    ab, ba = logits_of(scores)
    assert ab == pytest.approx(ba, abs=1e-3)


def test_surface_survives_a_label_that_nobody_chose_and_empty_texts() -> None:
    train = [replace(c, votes=[1.0, 0.0, 0.0] if i % 2 else [0.0, 1.0, 0.0]) for i, c in enumerate(simulate(40, 0))]
    held_out = [replace(c, prompt=[""], response_a=[""], response_b=[""]) for c in simulate(2, 1)]
    probabilities = predict(*logits_of(surface(train, held_out)))
    assert np.isfinite(np.log(probabilities)).all()
    assert (probabilities[:, LABELS.index("tie")] < 0.1).all()


def test_surface_features_see_what_they_name() -> None:
    dressed = "# Title\n\n- **bold** item\n1. two\n```py\nx = 1\n```\nI'm sorry, as an AI I cannot. Why?"
    features = surface_features([Conversation("1", ["Why two?"], [dressed], ["plain words"])])
    a = np.expm1(features["ab"][0, : (features["ab"].shape[1] - 3) // 4])
    expected = {0: len(dressed), 2: 7, 3: 2, 4: 2, 5: 1, 6: 1, 7: 2, 8: 1, 9: 3}  # lines ... refusals, in order
    assert {i: a[i] for i in expected} == pytest.approx(expected)
    width = len(a)
    assert (features["ab"][0, :width] == features["ba"][0, width : 2 * width]).all()
    assert (features["ab"][0, 2 * width : 4 * width] == -features["ba"][0, 2 * width : 4 * width]).all()


def test_training_without_votes_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 3 training conversations has votes"):
        surface([replace(c, votes=None) for c in simulate(3, 0)], simulate(2, 1))


@pytest.mark.skipif(not PANDALM.exists(), reason=f"{PANDALM} is not there: python -m proof.sources makes it")
def test_surface_beats_the_prior_on_human_votes() -> None:
    conversations = []
    for row in pl.read_csv(PANDALM, schema_overrides={"id": pl.String, "votes": pl.String}).iter_rows(named=True):
        prompt, a, b = (
            ["" if t is None else t for t in json.loads(row[k])] for k in ("prompt", "response_a", "response_b")
        )
        votes = [float(row["votes"].count(digit)) for digit in "120"]
        conversations.append(Conversation(row["id"], prompt, a, b, votes=votes, group=prompt[0]))
    held = set(sorted({c.group for c in conversations})[::3])
    train = [c for c in conversations if c.group not in held]
    held_out = [c for c in conversations if c.group in held]
    assert mean_loss(surface(train, held_out), held_out) < mean_loss(prior(train, held_out), held_out) - 0.05
