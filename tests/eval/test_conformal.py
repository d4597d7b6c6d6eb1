"""Prediction sets hold the vote as often as was asked, whatever the judge, with prompts as units."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from core.errors import UserError
from core.records import LABELS
from eval.conformal import (
    LEVELS,
    Thresholds,
    fit_thresholds,
    least_probabilities,
    read_thresholds,
    set_labels,
    sets_of,
    write_thresholds,
)

DRAWS = 200
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def drawn(generator: np.random.Generator, groups: int, blur: float) -> Drawn:
    """Logits in both orders, votes and groups of prompts of one to six conversations, which share half of their luck.

    The judge is wrong by `blur`, has a favourite place, and is too sure of itself.
    """
    sizes = generator.integers(1, 7, groups)
    members = np.repeat(np.arange(groups), sizes)
    true = generator.normal(size=(groups, 3))[members] + generator.normal(size=(len(members), 3))
    votes = np.array([generator.multinomial(1, p) for p in softmax(true, axis=1)], float)
    wrong = blur * (generator.normal(size=(groups, 3))[members] + generator.normal(size=(len(members), 3)))
    shown = [1.7 * (true + wrong) + 0.5 * generator.normal(size=true.shape) + [s, -s, 0] for s in (0.4, -0.4)]
    return shown[0], shown[1], votes, members


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_coverage_over_200_draws_is_what_was_asked_within_two_points(coverage: float, blur: float) -> None:
    generator = np.random.default_rng(1)
    held: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(DRAWS):
        thresholds = fit_thresholds(*drawn(generator, 60, blur))
        ab, ba, votes, members = drawn(generator, 60, blur)
        weight = 1 / np.bincount(members)[members] / 60
        for orders, logits in ((2, (ab + ba) / 2), (1, ab)):
            inside = sets_of(softmax(logits, axis=1), thresholds.least(coverage, orders))
            held[orders].append(float((weight * (inside * votes).sum(axis=1)).sum()))
    for orders, coverages in held.items():
        assert abs(np.mean(coverages) - coverage) < 0.02, (orders, np.mean(coverages))


def test_a_large_group_counts_as_one() -> None:
    """A prompt that was asked 500 times, and won by what the judge thought unlikely, moves the threshold little."""
    generator = np.random.default_rng(2)
    ab, ba, votes, members = drawn(generator, 99, 0.0)
    far = np.tile([4.0, -4.0, -4.0], (500, 1))
    many = [np.concatenate([of, far]) for of in (ab, ba)]
    lost = np.tile([0.0, 1.0, 0.0], (500, 1))
    with_it = fit_thresholds(*many, np.concatenate([votes, lost]), np.concatenate([members, np.full(500, 99)]))
    once = fit_thresholds(
        *(np.concatenate([of, far[:1]]) for of in (ab, ba)), np.concatenate([votes, lost[:1]]), np.append(members, 99)
    )
    assert with_it == once


def test_thresholds_by_hand() -> None:
    """Four prompts, the voted labels of probability 0.9, 0.6, 0.5, 0.2: with the unknown fifth each weighs 0.2."""
    probabilities = np.array([[p, 1 - p] for p in (0.9, 0.6, 0.5, 0.2)])
    votes = np.tile([1.0, 0.0], (4, 1))
    found = dict(zip(LEVELS, least_probabilities(probabilities, votes, np.arange(4)), strict=True))
    assert found[0.6] == 0.5 and found[0.61] == found[0.8] == 0.2 and found[0.81] == 0 and found[0.5] == 0.5
    assert sets_of(probabilities, found[0.6]).tolist() == [[True, False], [True, False], [True, True], [False, True]]


def test_sets_grow_with_coverage_and_mirror_with_the_sides() -> None:
    generator = np.random.default_rng(3)
    ab, ba, votes, members = drawn(generator, 50, 0.5)
    thresholds = fit_thresholds(ab, ba, votes, members)
    assert sorted(thresholds.both, reverse=True) == list(thresholds.both)
    swapped = fit_thresholds(ba[:, [1, 0, 2]], ab[:, [1, 0, 2]], votes[:, [1, 0, 2]], members)
    assert swapped.both == pytest.approx(thresholds.both) and swapped.one == pytest.approx(thresholds.one)
    probabilities = softmax((ab + ba) / 2, axis=1)
    assert sets_of(probabilities, 1.1).sum(axis=1).tolist() == [1] * len(ab), "never empty"


def test_what_is_written_is_read_and_what_is_damaged_refused(tmp_path: Path) -> None:
    assert read_thresholds(tmp_path) is None
    thresholds = fit_thresholds(*drawn(np.random.default_rng(4), 20, 0.5))
    write_thresholds(tmp_path, thresholds)
    assert read_thresholds(tmp_path) == thresholds
    assert thresholds.least(0.9, 2) == thresholds.both[LEVELS.index(0.9)]
    assert thresholds.least(0.905, 1) == thresholds.one[LEVELS.index(0.91)]
    for damaged in ("{}", "[]", json.dumps({"both": [0.5], "one": [0.5], "groups": 3}), "{"):
        (tmp_path / "conformal.json").write_text(damaged)
        with pytest.raises(UserError, match=r"conformal\.json holds no thresholds"):
            read_thresholds(tmp_path)
    assert isinstance(thresholds, Thresholds) and set_labels([True, False, True], LABELS) == ["a", "tie"]
