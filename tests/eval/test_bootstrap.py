"""The bootstrap equals the naive one, whatever the order of rows, and its percentiles hold the truth."""

import numpy as np
import pytest

from eval.bootstrap import BLOCK, bootstrap_means, interval


def test_bootstrap_of_single_rows_equals_the_naive_one() -> None:
    rows = np.random.default_rng(0).normal(size=40)
    means = bootstrap_means(rows, [f"{i:02}" for i in range(40)], 4000, 0)
    naive = [np.random.default_rng(s).choice(rows, 40).mean() for s in range(4000)]
    assert means.shape == (4000, 1)
    assert interval(means) == pytest.approx(interval(np.array(naive)), abs=0.02)


def test_bootstrap_is_the_same_for_any_order_of_rows_and_any_number_of_columns() -> None:
    rng = np.random.default_rng(0)
    rows, groups = rng.normal(size=(90, 2)), np.array([str(i) for i in rng.integers(30, size=90)])
    order = rng.permutation(90)
    means = bootstrap_means(rows, groups, 20, 3)
    assert means == pytest.approx(bootstrap_means(rows[order], groups[order], 20, 3), abs=1e-6)
    assert (means[:, 1:] == bootstrap_means(rows[:, 1], groups, 20, 3)).all()
    assert means == pytest.approx(bootstrap_means(np.repeat(rows, 3, 0), np.repeat(groups, 3), 20, 3), abs=1e-6)


def test_bootstrap_across_blocks_draws_every_group_alike() -> None:
    groups = BLOCK + 1000
    rows = np.zeros((groups, 2))
    rows[:1000, 0], rows[-1000:, 1] = 1, 1  # one in the first block, one alone in the second
    means = bootstrap_means(rows, np.char.zfill(np.arange(groups).astype(str), 6), 300, 0) * groups
    assert means.mean(0) == pytest.approx([1000, 1000], abs=4 * np.sqrt(1000 / 300))
    assert means.std(0) == pytest.approx([np.sqrt(1000)] * 2, rel=0.2)


@pytest.mark.long
def test_intervals_cover_the_truth() -> None:
    covered = grouped = alone = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        covered += _covers(rng.exponential(1, 200), np.arange(200), 1.0, seed)
        prompts = np.repeat(np.arange(50), 4)
        rows = rng.exponential(1, 50)[prompts] + rng.normal(0, 0.3, 200)  # rows of a prompt move together
        grouped += _covers(rows, prompts, 1.0, seed)
        alone += _covers(rows, np.arange(200), 1.0, seed)
    assert 180 <= covered <= 198
    assert 176 <= grouped <= 198
    assert alone < 160, "treating rows of one prompt as independent must show"


def _covers(rows: np.ndarray, groups: np.ndarray, truth: float, seed: int) -> bool:
    low, high = interval(bootstrap_means(rows, groups.astype(str), 300, seed))
    return low <= truth <= high


def test_one_group_has_no_interval() -> None:
    with pytest.raises(ValueError, match="all 7 conversations share one group"):
        bootstrap_means(np.zeros(7), [""] * 7, 10, 0)
