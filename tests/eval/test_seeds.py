"""A gain over seeds is paired, and its interval grows with the luck of training runs."""

import io

import numpy as np
import pytest
from rich.console import Console

from eval.bootstrap import Resampling
from eval.means import paired_difference
from eval.seeds import SeedRun, seeds_table, summarise_seeds

GAIN = 0.02
NO_TEACHER = "loss=votes"


def simulate(seeds: int, rows: int, luck: float, seed: int) -> tuple[dict[str, list[SeedRun]], list[str]]:
    """Runs of both judges; `luck` is the deviation of a run's mean loss over seeds."""
    rng = np.random.default_rng(seed)
    base = rng.normal(1, 0.5, rows)
    losses = {
        judge: base + extra + rng.normal(0, luck, (seeds, 1)) + rng.normal(0, 0.2, rows)
        for judge, extra in ((NO_TEACHER, GAIN), ("student", 0.0))
    }
    runs = {judge: [SeedRun(row, 0.5, 0.02, 0.1 * i) for i, row in enumerate(of)] for judge, of in losses.items()}
    return runs, [str(i) for i in range(rows)]


def test_equal_runs_reduce_to_the_paired_difference_over_rows() -> None:
    runs, groups = simulate(3, 50, 0.0, 0)
    summary = summarise_seeds(runs, [0, 1, 2], groups, dict.fromkeys(runs, 0))
    once = paired_difference(runs[NO_TEACHER][0].losses, runs["student"][0].losses, groups, Resampling(100, 5))
    assert summary.gains[NO_TEACHER].difference == pytest.approx(once.difference)
    assert summary.gains[NO_TEACHER].ci == pytest.approx(once.ci)
    assert summary.judges["student"].log_loss_sd == pytest.approx(0)
    assert summary.judges["student"].flip_rate == pytest.approx(0.1)
    assert summary.judges["student"].log_loss == pytest.approx(np.mean([run.losses for run in runs["student"]]))


def test_luck_of_runs_widens_the_interval() -> None:
    widths = []
    for luck in (0.0, 0.2):
        runs, groups = simulate(4, 100, luck, 0)
        low, high = summarise_seeds(runs, range(4), groups, dict.fromkeys(runs, 0)).gains[NO_TEACHER].ci
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


@pytest.mark.parametrize(
    ("seeds", "rows", "luck", "least"),
    [(5, 100, 0.02, 0.93), (3, 20, 0.02, 0.93), (3, 100, 0.2, 0.9), (2, 100, 0.2, 0.86)],
)
def test_interval_covers_the_gain_however_few_seeds_and_prompts_there_are(
    seeds: int, rows: int, luck: float, least: float
) -> None:
    covered = 0
    for seed in range(300):
        runs, groups = simulate(seeds, rows, luck, seed)
        low, high = summarise_seeds(runs, range(seeds), groups, dict.fromkeys(runs, 0)).gains[NO_TEACHER].ci
        covered += low <= GAIN <= high
    assert least < covered / 300 < 0.985


def test_table_shows_both_judges_and_the_gain() -> None:
    runs, groups = simulate(2, 50, 0.01, 0)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(seeds_table(summarise_seeds(runs, [3, 7], groups, dict.fromkeys(runs, 0))))
    shown = console.export_text()
    assert "2 training seeds: 3, 7" in shown and NO_TEACHER in shown and "student's gain" in shown
    assert "cross-validated" not in shown
    console.print(seeds_table(summarise_seeds(runs, [3, 7], groups, {"student": 20, NO_TEACHER: 0})))
    told = " ".join(console.export_text().split())
    assert "cross-validated, its teachers saw 20 of 50 votes" in told and "measured by the votes;" in told
    summary = summarise_seeds(runs, [3, 7], groups, {"student": 20, NO_TEACHER: 0}, "teacher")
    console.print(seeds_table(summary))
    told = " ".join(console.export_text().split())
    assert "saw 20 of 50 conversations" in told and "measured by the teacher's probabilities;" in told
    assert "votes" not in told.replace(NO_TEACHER, "")


def test_one_seed_is_refused() -> None:
    runs, groups = simulate(1, 20, 0.0, 0)
    with pytest.raises(ValueError, match=r"eval.seeds=\[4\].*two or more"):
        summarise_seeds(runs, [4], groups, dict.fromkeys(runs, 0))


def test_what_each_is_better_than_surface_is_told_where_that_is_judged() -> None:
    """A baseline, which no seed changes, stands beside them with its one run."""
    runs, groups = simulate(3, 50, 0.01, 0)
    fixed = simulate(1, 50, 0.0, 1)[0][NO_TEACHER]
    summary = summarise_seeds({**runs, "surface": fixed * 3}, [0, 1, 2], groups, dict.fromkeys([*runs, "surface"], 0))
    assert summary.judges["surface"].log_loss_sd == pytest.approx(0)
    for judge, of in runs.items():
        gain = fixed[0].losses.mean() - np.mean([run.losses.mean() for run in of])
        assert summary.over_surface[judge].difference == pytest.approx(gain)
        low, high = summary.over_surface[judge].ci
        assert low < gain < high
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(seeds_table(summary))
    shown = console.export_text()
    assert all(judge in shown for judge in summary.judges) and "…" not in shown
    low, high = summary.over_surface[NO_TEACHER].ci
    assert f"{summary.over_surface[NO_TEACHER].difference:+.4f}" in shown and f"{low:+.4f} to {high:+.4f}" in shown
    assert not summarise_seeds(runs, [0, 1, 2], groups, dict.fromkeys(runs, 0)).over_surface
