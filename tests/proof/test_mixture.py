"""The mixture is the mean of probabilities, and its gain is paired."""

import json

import numpy as np
import pytest

from proof.mixture import report, with_mixture


def test_judges_that_are_wrong_elsewhere_are_better_together(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    votes = np.eye(3)[rng.integers(0, 3, 90)]
    said = {
        judge: 0.1 + 0.7 * np.where((np.arange(90) % 2 == half)[:, None], votes, 1 / 3)
        for half, judge in enumerate("xy")
    }
    assert np.array_equal(with_mixture(said)["mixture"], (said["x"] + said["y"]) / 2)
    report(said, votes, [str(i) for i in range(90)], ["s" if i < 30 else "t" for i in range(90)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    right, level = -np.log(0.8), -np.log(1 / 3)
    mixed = -np.log((0.8 + 1 / 3) / 2)
    assert found["x"]["log_loss"] == pytest.approx((right + level) / 2) == found["y"]["log_loss"]
    assert found["mixture"]["log_loss"] == pytest.approx(mixed)
    assert found["x"]["mixture_gains"] == pytest.approx((right + level) / 2 - mixed)
    assert found["x"]["ci"][0] < found["x"]["mixture_gains"] < found["x"]["ci"][1]
    assert found["mixture"]["by_source"] == pytest.approx({"s": mixed, "t": mixed})
