"""The law through finished runs: found where it holds, no more certain than its runs, and never below zero."""

import numpy as np
import pytest

from eval.scaling import Law, Run, fit, forecast, misfit

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


def test_the_gain_is_over_the_law_at_the_largest_size_not_over_the_run_there() -> None:
    *others, last = runs(0.01)
    (found,) = forecast([*others, Run(last.conversations, last.log_loss + 0.02, last.error)], [32000])
    law = fit([*others, Run(last.conversations, last.log_loss + 0.02, last.error)])
    assert found.gain == pytest.approx(law.at(16000) - law.at(32000))


def test_a_law_that_does_not_fit_is_told() -> None:
    told = [misfit(runs(0.003, seed)) for seed in range(100)]
    assert np.mean([problem is not None for problem in told]) < 0.1, "of runs that follow one"
    waves = [Run(run.conversations, run.log_loss + 0.02 * (-1) ** i, 0.003) for i, run in enumerate(runs(0.003))]
    assert "further from it than their errors allow" in str(misfit(waves))
    assert misfit([Run(run.conversations, run.log_loss, 0.03) for run in waves]) is None, "their errors allow it"
    rising = [Run(size, 0.5 + size * 1e-5, 0.01) for size in SIZES]
    assert "further from it than their errors allow" in str(misfit(rising))
    assert "end of what is searched, 2.00" in str(misfit([Run(n, 0.5 + 1e8 * n**-3.0, 0.01) for n in SIZES]))
    assert "end of what is searched, 0.02" in str(misfit([Run(n, 0.9 - 0.005 * np.log(n), 0.01) for n in SIZES]))
    assert misfit(runs(0.003, 0)[:3]) is None, "three sizes determine a law"


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
