"""Which rows gain by a second opinion: told by a pilot, for the cost of one, whatever the logits look like."""

import numpy as np
import pytest
from scipy.special import softmax

from eval.metrics import kl_rows
from eval.second_opinions import PILOT_SHARE, Opinions, draw_pilot, estimate, expected_gain, in_turn, margin

ROWS = 400
RNG = np.random.default_rng(0)
TOKENS = np.full(ROWS, 100.0)


def alone(logits: np.ndarray, tokens: np.ndarray = TOKENS) -> Opinions:
    return Opinions(logits, logits, tokens)


def judge_that_knows() -> tuple[np.ndarray, np.ndarray]:
    """Sure where it is right, swayed a little by the order."""
    opinion, noise = RNG.normal(0, 2, (2, ROWS)), RNG.normal(0, 0.3, (ROWS, 3))
    knows = np.stack([opinion[0], -opinion[0], opinion[1] / 4], axis=1)
    return knows + noise, knows - noise


def judge_that_guesses() -> tuple[np.ndarray, np.ndarray]:
    """All that it says is the order's doing."""
    guesses = RNG.normal(0, 1, (ROWS, 3))
    return guesses, -guesses


def test_a_pilot_tells_whether_a_judge_gains_where_it_is_sure_or_where_it_is_not() -> None:
    for (first, second), sure in ((judge_that_knows(), False), (judge_that_guesses(), True)):
        both = (first + second) / 2
        pilot = draw_pilot(ROWS, ROWS, 100)
        rest = in_turn(alone(first), pilot, both[pilot])
        assert sorted([*pilot, *rest]) == [*range(ROWS)]
        early, late = rest[:100], rest[-100:]
        assert (margin(first[early]).mean() > margin(first[late]).mean()) == sure
        gain = expected_gain(first, both)
        assert gain[early].mean() > 1.3 * gain.mean(), "far more than a random hundred"


def test_the_expected_gain_is_the_divergence_of_the_second_from_the_first() -> None:
    first, second = judge_that_knows()
    gain = expected_gain(first, second)
    np.testing.assert_allclose(gain, kl_rows(softmax(second, axis=1), softmax(first, axis=1)))
    assert (gain >= 0).all() and np.abs(expected_gain(first, first)).max() < 1e-12


def test_of_equal_gains_the_cheaper_comes_first() -> None:
    first, second = judge_that_knows()
    tokens = RNG.permutation(np.arange(1.0, ROWS + 1))
    equal = np.tile(first[:1], (ROWS, 1))
    pilot = draw_pilot(ROWS, ROWS, 50)
    rest = in_turn(alone(equal, tokens), pilot, equal[pilot])
    assert (np.diff(tokens[rest]) > 0).all()
    none = in_turn(alone(first, tokens), np.array([], dtype=int), second[:0])
    assert (np.diff(tokens[none]) > 0).all() and len(none) == ROWS, "without a pilot nothing is known of gains"


def test_the_order_is_that_of_expected_gain_for_its_cost() -> None:
    """Twice the gain is worth twice the tokens."""
    clues = np.stack([np.repeat([-1.0, 1.0], ROWS // 2)], axis=1)
    pilot = np.arange(ROWS)
    gain = np.where(clues[:, 0] > 0, 2.0, 1.0) * RNG.gamma(1, 1, ROWS)
    high, low = estimate(clues, pilot, gain)[[-1, 0]]
    assert high / low == pytest.approx(2, abs=0.4)
    few = estimate(clues, pilot[[0, 1, -1]], gain[[0, 1, -1]])
    assert few.max() / few.min() < 1.5, "a small pilot says little"


def test_the_estimate_is_monotone_in_each_clue() -> None:
    clues = RNG.normal(size=(ROWS, 3))
    gain = np.exp(clues @ np.array([0.5, -0.5, 0.0])) * RNG.gamma(1, 1, ROWS)
    base = np.zeros((2, 3))
    for k, sign in ((0, 1), (1, -1)):
        moved = base.copy()
        moved[1, k] = 1
        low, high = estimate(np.concatenate([clues, moved]), np.arange(ROWS), gain)[-2:]
        assert sign * (high - low) > 0


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e6, 1e30])
@pytest.mark.parametrize("labels", [2, 3])
def test_unusual_logits_give_an_order_all_the_same(scale: float, labels: int) -> None:
    first, second = (scale * logits[:, :labels].astype(np.float32) for logits in judge_that_knows())
    second[0], first[1] = 1e30, -1e30
    pilot = draw_pilot(ROWS, ROWS, 64)
    rest = in_turn(Opinions(first, second, np.zeros(ROWS)), pilot, second[pilot])
    assert sorted([*pilot, *rest]) == [*range(ROWS)]


def test_a_pilot_is_a_part_of_those_that_are_asked_again_and_always_the_same() -> None:
    assert len(draw_pilot(ROWS, 100, 512)) == 100 * PILOT_SHARE and len(draw_pilot(ROWS, ROWS, 10)) == 10
    assert (draw_pilot(ROWS, 100, 512) == draw_pilot(ROWS, 100, 512)).all()
    assert not len(draw_pilot(0, 0, 512))
    for rows in (1, 2):
        assert (
            len(in_turn(alone(np.zeros((rows, 3)), np.ones(rows)), np.array([], dtype=int), np.empty((0, 3)))) == rows
        )
