"""Bins of confidence hold what they say, and a judge that knows the true distribution is calibrated."""

import numpy as np
import pytest

from eval.metrics import predict
from eval.reliability import expected_calibration_error, reliability, reliability_by_label
from tests.eval.simulated_logits import simulate


def test_bins_of_equal_mass_hold_one_number_of_rows_and_never_part_equal_values() -> None:
    ab, ba, votes = simulate(1000, 4)
    ab[::4] += np.random.default_rng(0).normal(size=(250, 3)).astype(np.float32)
    probabilities = predict(ab, ba)
    assert reliability(probabilities, votes, 10, equal_mass=True)["count"].to_list() == pytest.approx([100] * 10, abs=1)
    ece, adaptive = (expected_calibration_error(probabilities, votes, 1, mass) for mass in (False, True))
    assert ece == pytest.approx(adaptive), "a single bin has any width and mass"
    constant = np.tile([0.5, 0.3, 0.2], (1000, 1))
    assert reliability(constant, votes, 10, equal_mass=True)["count"].to_list() == [1000]
    assert expected_calibration_error(constant, votes, 10, True) == pytest.approx(abs(votes[:, 0].mean() - 0.5))


@pytest.mark.parametrize("mass", [False, True])
def test_a_judge_that_knows_the_law_is_calibrated_and_a_bold_one_is_not(mass: bool) -> None:
    rng = np.random.default_rng(0)
    law = rng.dirichlet([1, 1, 1], 40_000)
    votes = (np.arange(3) == (rng.random((40_000, 1)) > law.cumsum(1)).sum(1, keepdims=True)).astype(float)
    bold = law**3 / (law**3).sum(1, keepdims=True)
    assert expected_calibration_error(law, votes, 10, mass) < 0.01
    assert expected_calibration_error(bold, votes, 10, mass) > 0.1
    table = reliability_by_label(law, votes, 10)
    assert table["predicted"].to_numpy() == pytest.approx(table["observed"].to_numpy(), abs=0.03)
