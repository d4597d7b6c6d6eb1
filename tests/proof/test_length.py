"""What length is worth: recovered where it was put, and nothing where it was not."""

import numpy as np
import pytest
from scipy.special import expit

from core.records import Conversation
from eval.metrics import win_rates
from proof.length import Games, fit, said, slope_interval

STRENGTHS = {"m0": 1.0, "m1": 0.0, "m2": -1.0}
LENGTHS = {"m0": 2.0, "m1": 1.0, "m2": 0.5}  # better models write more


def games(count: int = 400) -> Games:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        a, b = rng.choice([*STRENGTHS], 2, replace=False)
        words = [max(1, int(20 * LENGTHS[m] * 2 ** rng.normal())) for m in (a, b)]
        texts = [["w " * n] for n in words]
        rows.append(Conversation(str(i), ["q"], *texts, model_a=a, model_b=b, group=str(i % 40)))
    return Games.of(rows)


@pytest.mark.parametrize("slope", [0.0, 0.7])
def test_the_slope_is_what_was_put_in_beside_the_strengths(slope: float) -> None:
    played = games()
    strengths = np.array([STRENGTHS[m] for m in played.models])
    won = expit(strengths[played.sides[:, 0]] - strengths[played.sides[:, 1]] + slope * played.doublings)
    found = fit(played, won, np.ones(len(won)), length=True)
    assert found.slope == pytest.approx(slope, abs=0.02)
    assert np.diff(found.strengths) == pytest.approx(np.diff(strengths), abs=0.05)
    low, high = slope_interval(played, won)
    assert low <= found.slope <= high
    plain = fit(played, won, np.ones(len(won)), length=False)
    longer = plain.strengths[0] - plain.strengths[2]
    assert plain.slope == 0 and (longer > 2.5 if slope else longer == pytest.approx(2, abs=0.05))


def test_shares_are_those_of_the_mean_logits() -> None:
    import polars as pl

    logits = pl.DataFrame({"id": ["x", "y"], "logits": [[0.0, 0.0, -30.0], [np.log(3.0), 0.0, 0.0]]})
    assert said(logits, ["y", "x"]) == pytest.approx([0.7, 0.5])
    assert win_rates(np.array([[0.2, 0.4, 0.4]])) == pytest.approx([0.4])
