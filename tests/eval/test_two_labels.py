"""Data without ties: every figure is that of two labels, and judges that know no ties judge nothing else."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from core.errors import UserError
from core.labels import ENOUGH, WITHOUT_TIES, check_knows, labels_of_votes
from core.records import LABELS, Conversation
from core.scoring import logits_by_order
from eval.biases import find_biases
from eval.bootstrap import Resampling
from eval.comparison import Comparison, Roles, compare
from eval.judges.baselines import prior, surface
from eval.judges.bradley_terry import bradley_terry
from eval.leaderboard import leaderboard
from eval.metrics import predict
from eval.recalibration import IDENTITY, fit_recalibration
from teachers.bradley_terry import fit_bradley_terry
from teachers.mixtures import Mixing, mix

DRAWN = np.random.default_rng(2)
ROWS = 400
TRUTH = DRAWN.normal(0, 1.2, ROWS)  # log odds of a
WON = DRAWN.random(ROWS) < 1 / (1 + np.exp(-TRUTH))
CONVERSATIONS = [
    Conversation(
        id=str(i),
        prompt=[f"question {i}"],
        response_a=["long " * (4 if TRUTH[i] > 0 else 1)],
        response_b=["short"],
        model_a=f"model {i % 3}",
        model_b=f"model {(i + 1) % 3}",
        votes=[float(WON[i]), float(not WON[i]), 0.0],
        group=str(i),
        fold=i % 2,
    )
    for i in range(ROWS)
]
VOTES = np.array([c.votes for c in CONVERSATIONS])[:, :2]
PAIR = tuple(np.column_stack([TRUTH / 2 + shift, -TRUTH / 2]) for shift in (0.3, -0.3))  # leans to what is shown first


def compared() -> Comparison:
    groups = [c.group for c in CONVERSATIONS]
    return compare({"student": PAIR}, VOTES, groups, Roles(None, None), {}, resampling=Resampling(50, 0), bins=10)


def test_figures_are_scikit_learns_of_two_classes() -> None:
    result = compared()
    found, a = result.judges["student"], 1 / (1 + np.exp(-TRUTH))
    assert found.log_loss == pytest.approx(log_loss(WON, a), abs=1e-12)
    assert found.accuracy == pytest.approx(accuracy_score(WON, a > 0.5), abs=1e-12)
    assert found.brier == pytest.approx(2 * brier_score_loss(WON, a), abs=1e-12)
    assert found.auc == pytest.approx((roc_auc_score(WON, a) + roc_auc_score(~WON, 1 - a)) / 2, abs=0.01)
    assert [*result.labels] == ["a", "b"] == [*found.reliability_by_label]
    assert min(of.confidence for of in found.reliability) >= 0.5
    twice = np.abs(TRUTH) < 0.3  # the lean of either order decides there
    assert found.flip_rate == pytest.approx(twice.mean())


def test_biases_and_ratings_ask_for_no_ties() -> None:
    found = {bias.name: bias for bias in find_biases(CONVERSATIONS, *PAIR, level=0.05)}
    assert "verbosity_at_ties" not in found and found["position"].flagged
    board = leaderboard(CONVERSATIONS, VOTES, {"student": predict(*PAIR)}, Resampling(20, 0))
    assert board is not None and len(board.models) == 3


def test_baselines_are_fitted_to_two_labels() -> None:
    ids = [c.id for c in CONVERSATIONS]
    ab, _ = logits_by_order(prior(CONVERSATIONS, CONVERSATIONS, WITHOUT_TIES), ids, WITHOUT_TIES)
    assert np.exp(ab[0]) == pytest.approx((VOTES.sum(axis=0) + 1) / (ROWS + 2), rel=1e-5)
    for baseline in (surface, bradley_terry):
        scores = baseline(CONVERSATIONS, CONVERSATIONS, WITHOUT_TIES)
        whole = np.concatenate(logits_by_order(scores, ids))
        assert np.exp(whole[:, 2] - whole[:, :2].max(axis=1)).max() < 1e-9, "no probability is left for ties"
    probabilities = predict(*logits_by_order(surface(CONVERSATIONS, CONVERSATIONS, WITHOUT_TIES), ids, WITHOUT_TIES))
    assert log_loss(WON, probabilities[:, 0]) < np.log(2) - 0.05


def test_temperature_and_vector_scaling_are_one() -> None:
    logits = np.mean(PAIR, axis=0) * 3
    temperature, vector = (fit_recalibration(logits, VOTES, kind) for kind in ("temperature", "vector"))
    assert temperature.scale[:2] == pytest.approx(vector.scale[:2], rel=1e-4) and vector.shift == (0, 0, 0)
    assert temperature.scale[0] == pytest.approx(1 / 3, abs=0.08)
    assert (IDENTITY(logits) == logits).all()


def test_rewards_become_bradley_and_terrys_own_model() -> None:
    fit = fit_bradley_terry(TRUTH[:, None], VOTES, l2=0.0)
    assert fit.weights[0] == pytest.approx(1, abs=0.2) and np.exp(fit.log_tie) < 1e-9
    assert fit_bradley_terry(-TRUTH[:, None], VOTES[:, ::-1], l2=0.0).weights == pytest.approx(fit.weights)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_a_mixture_is_that_of_the_conditional_probabilities(space: str) -> None:
    config = Mixing(teachers=["one", "two"], weights=[2.0, 1.0], space=space, temperature_scaling=False)
    logits = DRAWN.normal(0, 2, (2, 6, 2, 3)).astype(np.float32)
    tables = {
        name: pl.DataFrame(
            {"id": [str(i) for i in range(6) for _ in "ab"], "order": ["ab", "ba"] * 6, "logits": of.reshape(-1, 3)},
            schema_overrides={"logits": pl.Array(pl.Float32, 3)},
        )
        for name, of in zip(config.teachers, logits, strict=True)
    }
    found, _ = mix(tables, CONVERSATIONS[:6], config, WITHOUT_TIES)
    one, two = 1 / (1 + np.exp(logits[..., 1] - logits[..., 0]).astype(float))
    if space == "probabilities":
        a = (2 * one + two) / 3
    else:
        a, b = (np.exp((2 * np.log(p) + np.log(q)) / 3) for p, q in ((one, two), (1 - one, 1 - two)))
        a = a / (a + b)
    assert np.exp(found[..., 0]) == pytest.approx(a, abs=1e-6) and np.exp(found[..., 2]).max() < 1e-9
    assert np.exp(found).sum(axis=-1) == pytest.approx(1, abs=1e-6)


def test_labels_are_those_that_people_voted_for() -> None:
    def counted(ties: int, others: int) -> tuple[str, ...]:
        votes = [[0.0, 0.0, 1.0]] * ties + [[1.0, 0.0, 0.0]] * others
        return labels_of_votes(pl.Series([*votes, None], dtype=pl.List(pl.Float64)))

    assert counted(0, ENOUGH) == WITHOUT_TIES
    assert counted(0, ENOUGH - 1) == counted(1, 500) == LABELS
    with pytest.raises(UserError, match="knows only a and b, but these data have ties"):
        check_knows(Path("students/x"), WITHOUT_TIES, LABELS)
    check_knows(Path("students/x"), LABELS, WITHOUT_TIES)
