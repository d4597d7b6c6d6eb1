"""A recalibration finds what was planted, never fits worse than none, and treats both sides alike."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from core.scoring import SWAPPED
from eval.metrics import log_loss_rows
from eval.recalibration import (
    FILE,
    IDENTITY,
    LARGEST_SCALE,
    Kind,
    Recalibration,
    fit_recalibration,
    read_recalibration,
    write_recalibration,
)

FITTED: list[Kind] = ["temperature", "vector"]


def simulate(rows: int, seed: int, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the true law, and one vote a row drawn from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (rows, 3))
    votes = np.eye(3)[(rng.random((rows, 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)]
    return logits, votes


def loss(logits: np.ndarray, votes: np.ndarray) -> float:
    return float(log_loss_rows(softmax(logits, axis=1), votes).mean())


def test_a_planted_temperature_is_recovered() -> None:
    logits, votes = simulate(40_000, 0)
    found = fit_recalibration(logits * 2.5 + 7, votes, "temperature")
    assert found.scale == pytest.approx([0.4] * 3, rel=0.03) and found.shift == (0, 0, 0)
    assert loss(found(logits * 2.5 + 7), votes) == pytest.approx(loss(logits, votes), abs=1e-3)


def test_a_planted_scale_and_shift_of_ties_is_recovered() -> None:
    planted = Recalibration((0.5, 0.5, 0.8), (0.0, 0.0, -0.4))
    logits, _ = simulate(40_000, 1)
    law, rng = softmax(planted(logits), axis=1), np.random.default_rng(2)
    votes = np.eye(3)[(rng.random((len(law), 1)) > law.cumsum(axis=1)).sum(axis=1)]
    found = fit_recalibration(logits, votes, "vector")
    assert found.scale == pytest.approx(planted.scale, abs=0.04)
    assert found.shift == pytest.approx(planted.shift, abs=0.04)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["none", *FITTED]),
    stretch=st.floats(-3, 30),
    rows=st.integers(1, 60),
    soft=st.booleans(),
)
def test_it_never_fits_worse_than_no_recalibration(
    seed: int, kind: Kind, stretch: float, rows: int, soft: bool
) -> None:
    logits, votes = simulate(rows, seed)
    votes = votes + np.random.default_rng(seed).integers(3, size=votes.shape) if soft else votes
    found = fit_recalibration(logits * stretch, votes, kind)
    assert loss(found(logits * stretch), votes) <= loss(logits * stretch, votes) + 1e-12
    assert min(found.scale) >= 0 and max(found.scale) <= LARGEST_SCALE


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(FITTED))
def test_it_commutes_with_swapping_and_with_averaging_and_knows_probabilities_alone(seed: int, kind: Kind) -> None:
    logits, votes = simulate(50, seed)
    found = fit_recalibration(logits, votes, kind)
    assert found(logits)[:, SWAPPED] == pytest.approx(found(logits[:, SWAPPED]), abs=1e-12)
    swapped = fit_recalibration(logits[:, SWAPPED], votes[:, SWAPPED], kind)
    assert swapped.scale == pytest.approx(found.scale, abs=1e-4)
    assert swapped.shift == pytest.approx(found.shift, abs=1e-4)
    pair = np.stack([logits, logits[::-1]])
    assert found(pair).mean(axis=0) == pytest.approx(found(pair.mean(axis=0)))
    level = np.random.default_rng(seed).normal(0, 9, (50, 1))
    assert softmax(found(logits + level), axis=1) == pytest.approx(softmax(found(logits), axis=1))


def test_with_no_ties_it_is_a_logistic_regression_on_the_margin() -> None:
    logits, votes = simulate(2_000, 3)
    decisive = votes[:, 2] == 0
    logits, votes = logits[decisive], votes[decisive]
    logits[:, 2] = -1000  # a judge that never expects a tie
    margin = (logits[:, 0] - logits[:, 1])[:, None]
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(margin, votes[:, 0])
    found = fit_recalibration(logits, votes, "temperature")
    assert found.scale[0] == pytest.approx(regression.coef_[0, 0], rel=1e-4)


def test_a_judge_that_is_never_wrong_is_not_made_certain() -> None:
    _, votes = simulate(20, 4)
    assert fit_recalibration(votes, votes, "temperature").scale == pytest.approx([LARGEST_SCALE] * 3)


def test_it_comes_back_from_its_file_and_none_is_the_identity(tmp_path: Path) -> None:
    logits, votes = simulate(100, 5)
    assert read_recalibration(tmp_path) == IDENTITY
    assert (IDENTITY(logits.astype(np.float32)) == logits.astype(np.float32)).all()
    found = fit_recalibration(logits * 2, votes, "vector")
    write_recalibration(tmp_path, found, {"rows": 100})
    assert read_recalibration(tmp_path) == found


@pytest.mark.parametrize(
    "text",
    [
        '{"scale": [1, 2, 1], "shift": [0, 0, 0]}',
        '{"scale": [1, 1], "shift": [0, 0, 0]}',
        '{"scale": [1, 1, "x"], "shift": [0, 0, 0]}',
        '{"scale": [1, 1, 1]}',
        "[]",
        "{",
    ],
)
def test_a_file_that_holds_no_recalibration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{FILE} holds no recalibration.*delete it"):
        read_recalibration(tmp_path)


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(ValueError, match="recalibration='vector': there are no rows"):
        fit_recalibration(np.empty((0, 3)), np.empty((0, 3)), "vector")
