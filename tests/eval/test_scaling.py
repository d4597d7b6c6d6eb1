"""The law through finished runs: found where it holds, no more certain than its runs, and never below zero."""

import numpy as np
import pytest

from eval.scaling import Law, Run, fit, forecast

LAW = Law(floor=0.45, gain=1.6, exponent=0.4)
SIZES = [500, 1000, 4000, 16000]


def runs(error: float, seed: int | None = None) -> list[Run]:
    noise = np.zeros(len(SIZES)) if seed is None else np.random.default_rng(seed).normal(0, error, len(SIZES))
    return [Run(size, LAW.at(size) + off, error) for size, off in zip(SIZES, noise, strict=True)]


def test_a_law_is_found_where_it_holds() -> None:
    found = fit(runs(0.01))
    assert [found.floor, found.exponent] == pytest.approx([LAW.floor, LAW.exponent], abs=2e-3)
    (next_one,) = forecast(runs(1e-6), [32000])
    assert next_one.log_loss == pytest.approx(LAW.at(32000), abs=1e-4)
    assert next_one.gain == pytest.approx(LAW.at(16000) - LAW.at(32000), abs=1e-4)


@pytest.mark.long
def test_its_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth = LAW.at(32000)
    held = [low <= truth <= high for s in range(40) for low, high in [forecast(runs(0.003, s), [32000])[0].log_loss_ci]]
    assert np.mean(held) > 0.85


def test_more_conversations_never_cost_and_no_loss_is_negative() -> None:
    rising = [Run(size, 0.5 + size * 1e-5, 0.01) for size in SIZES]
    assert forecast(rising, [64000])[0].gain == pytest.approx(0, abs=1e-6)
    steep = [Run(size, 200 / size, 0.01) for size in SIZES]
    assert forecast(steep, [10**9])[0].log_loss >= 0


def test_two_sizes_are_no_law() -> None:
    with pytest.raises(ValueError, match="runs of 3 sizes"):
        fit(runs(0.01)[:2])
