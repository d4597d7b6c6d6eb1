"""Charts keep what they draw: the mean of long curves, and every value on an axis of a few round ticks."""

import numpy as np
import polars as pl
import pytest

from eval.report.charts import Axis, training_plots


def test_curves_keep_their_mean_however_long_the_training() -> None:
    long = pl.DataFrame({"step": range(1, 1001), "loss": np.random.default_rng(0).random(1000)})
    (plot,) = training_plots({"student": long}, ["loss"])
    (curve,) = plot.curves
    assert len(curve.points) == 200 and not curve.rows
    assert np.mean([y for _, y in curve.points]) == pytest.approx(long["loss"].mean())


@pytest.mark.parametrize("values", [(0, 1), (0.9371, 1.0986), (5, 5), (0, 0), (-3e-5, 2e-5), (1, 57477)])
def test_axis_holds_its_values_and_has_a_few_round_ticks(values: tuple[float, float]) -> None:
    axis = Axis.over(values, 0.05)
    assert all(0 <= axis.at(v) <= 100 for v in values)
    assert 3 <= len(axis.ticks) <= 9
    assert all(float(label.replace(",", "")) == pytest.approx(tick, abs=1e-12) for tick, label in axis.ticks)
