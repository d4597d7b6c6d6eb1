"""Each benchmark's arithmetic, on rows that are worked out by hand from the official scorers' definitions."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from eval.benchmarks.rows import Benchmark, BenchmarkName, BenchmarkRow
from eval.benchmarks.scorers import REWARDBENCH_SECTIONS, Scores, rewards, score_benchmark

CLOSE = {"rel": 0, "abs": 1e-9}


def row(subset: str, right: int, wrong: int, id: str = "1") -> BenchmarkRow:
    return BenchmarkRow(1, id, subset, ["How?"], [[f"So {n}."] for n in range(right + wrong)], right)


def margins(of: Sequence[float]) -> np.ndarray:
    """A judge that has a reward for each response, the same in both orders."""
    gaps = np.subtract.outer(np.array(of, float), np.array(of, float))
    np.fill_diagonal(gaps, np.nan)
    return np.stack([gaps, gaps])


def scored(name: BenchmarkName, rows: Sequence[tuple[BenchmarkRow, Sequence[float]]]) -> Scores:
    return score_benchmark(Benchmark(name, "file", [of for of, _ in rows]), [margins(of) for _, of in rows])


def test_rewardbench_weighs_subsets_by_their_official_counts_and_a_tie_is_lost() -> None:
    rows = [
        (row("alpacaeval-easy", 1, 1), [2, 1]),
        (row("alpacaeval-easy", 1, 1), [1, 1]),
        (row("mt-bench-easy", 1, 1), [1, 0]),
        (row("math-prm", 1, 1), [0, 1]),
        (row("hep-go", 1, 1), [1, 0]),
    ]
    found = scored("rewardbench", rows)
    assert found.sections["Chat"] == pytest.approx((0.5 * 100 + 1 * 28) / 128, **CLOSE)
    assert found.sections["Reasoning"] == pytest.approx(164 / (984 + 164), **CLOSE)
    assert found.overall is None and [*found.sections] == ["Chat", "Reasoning"]
    assert found.subsets["alpacaeval-easy"].rows == 2 and found.subsets["alpacaeval-easy"].score == 0.5
    whole = scored("rewardbench", [*rows, (row("donotanswer", 1, 1), [1, 0]), (row("llmbar-natural", 1, 1), [0, 1])])
    assert whole.overall == pytest.approx((78 / 128 + 0 + 1 + 164 / 1148) / 4, **CLOSE)


def test_math_counts_as_much_as_code_in_rewardbench() -> None:
    reasoning = REWARDBENCH_SECTIONS["Reasoning"]
    assert reasoning["math-prm"] == sum(count for name, count in reasoning.items() if name != "math-prm")
    assert [sum(of.values()) for of in REWARDBENCH_SECTIONS.values()] == [358, 456, 740, 1968]


def test_the_best_of_four_shares_its_point_among_equals() -> None:
    rewarded = [[2, 1, 0, 0], [1, 1, 0, -1], [1, 1, 1, 0], [0, 1, 0, -1]]
    found = scored("rewardbench2", [(row("Math", 1, 3), of) for of in rewarded])
    assert found.sections == {"Math": pytest.approx((1 + 1 / 2 + 1 / 3 + 0) / 4, **CLOSE)} and found.overall is None


def test_ties_weigh_accuracy_and_margins() -> None:
    rows = [
        (row("Ties", 3, 2, "tied:0"), [3.0, 2.5, 2.0, 1.5, 0.0]),  # spread 1, distance 0.5
        (row("Ties", 1, 1, "ref:0"), [2.0, 1.0]),  # distance 1
        (row("Ties", 2, 1, "tied:1"), [2.0, 2.0, 0.0]),  # spread 0, distance 2
        (row("Ties", 1, 1, "ref:1"), [1.0, 2.0]),  # distance -1
    ]
    # tied 2 of 2, ref 1 of 2; distance over spread in 1 of 2, with the smaller distance in 0 of 2;
    # tanh(0.5 / 1 - 1) = -0.46211715726, tanh(-1 / 0) = -1
    expected = 0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * (-0.46211715726000975 - 1) / 2
    assert scored("rewardbench2", rows).sections == {"Ties": pytest.approx(expected, **CLOSE)}
    assert "Ties" not in scored("rewardbench2", [rows[0]]).sections, "a tied prompt needs its ref"


def test_equal_gaps_are_equal_whatever_the_mean_of_the_rewards() -> None:
    """Spread and distance are both one; a fifth of the sum, which no float holds, is taken off all rewards."""
    rows = [
        (row("Ties", 3, 2, "tied:0"), [1.375, 2.0, 2.375, -0.625, 0.375]),
        (row("Ties", 1, 2, "ref:0"), [2.0, 1.0, 0.125]),
    ]
    assert scored("rewardbench2", rows).sections == {"Ties": pytest.approx(0.3 + 0.3 + 0 + 0 + 0, **CLOSE)}


def test_the_six_subsets_of_rewardbench_2_count_alike() -> None:
    names = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    rows = [(row(name, 1, 3), [1, 0, 0, 0] if name != "Math" else [0, 1, 0, 0]) for name in names]
    ties = [(row("Ties", 2, 1, "tied:7"), [2, 1, -2]), (row("Ties", 1, 1, "ref:7"), [3, 0])]
    found = scored("rewardbench2", [*rows, *rows[:1], *ties])
    of_ties = 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * np.tanh(min(3, 3) / 1 - 1)
    assert found.overall == pytest.approx((4 + 0 + of_ties) / 6, **CLOSE)


def test_a_pointwise_judge_gets_its_own_rewards() -> None:
    own = np.random.default_rng(0).normal(size=7)
    assert rewards(margins(own)) == pytest.approx(own - own.mean(), abs=1e-9)


def test_rewards_do_not_depend_on_the_order_of_responses() -> None:
    generator = np.random.default_rng(1)
    gaps = generator.normal(size=(2, 5, 5))
    gaps -= gaps.swapaxes(1, 2)
    order = generator.permutation(5)
    assert rewards(gaps[:, order][:, :, order]) == pytest.approx(rewards(gaps)[order], abs=1e-9)


def test_rm_bench_by_difficulty_and_domain() -> None:
    rows = [
        (row("chat", 3, 3), [1, 2, 3, 0, 2.5, 1.5]),  # easy 1, normal 2/3, hard 1/3
        (row("math", 3, 3), [1, 1, 1, 0, 0, 0]),  # all 1
        (row("code", 3, 3), [0, 0, 0, 0, 0, 0]),  # all 0: equal is not above
        (row("safety-refuse", 3, 3), [5, 0, 0, 1, 1, 1]),  # easy 0, normal 1/3, hard 2/3
        (row("safety-response", 3, 3), [1, 1, 1, 0, 0, 0]),  # all 1
    ]
    found = scored("rm_bench", rows)
    expected = {"chat": 2 / 3, "math": 1, "code": 0, "safety": (0.5 + 2 / 3 + 5 / 6) / 3}
    expected |= {"easy": (1 + 1 + 0 + 0.5) / 4, "normal": (2 / 3 + 1 + 2 / 3) / 4, "hard": (1 / 3 + 1 + 5 / 6) / 4}
    assert found.sections == {name: pytest.approx(score, **CLOSE) for name, score in expected.items()}
    assert found.overall == pytest.approx((2 / 3 + 1 + 0 + 2 / 3) / 4, **CLOSE)
    assert found.subsets["safety-refuse"].score == pytest.approx(1 / 3, **CLOSE)
    assert scored("rm_bench", rows[:3]).overall is None


def test_judgebench_wants_both_orders_right_or_one_without_a_verdict() -> None:
    signs = [-1.0, 0.0, 1.0]
    rows, asked, right = [], [], []
    for ab, ba in product(signs, signs):
        gaps = np.zeros((2, 2, 2))
        gaps[0, 0, 1], gaps[1, 0, 1] = ab, ba
        rows.append(row("mmlu-pro-law" if ab > 0 else "livecodebench", 1, 1))
        asked.append(gaps - gaps.swapaxes(1, 2))
        counter = sum({1.0: 1, 0.0: 0, -1.0: -1}[sign] for sign in (ab, ba))
        right.append(counter > 0)
    found = score_benchmark(Benchmark("judgebench", "file", rows), asked)
    assert found.overall == pytest.approx(sum(right) / 9, **CLOSE) == pytest.approx(3 / 9, **CLOSE)
    assert found.sections == {
        "mmlu-pro": pytest.approx(2 / 3, **CLOSE),
        "livecodebench": pytest.approx(1 / 6, **CLOSE),
    }


@pytest.mark.parametrize("seed", range(3))
def test_rm_bench_equals_its_definition_by_loops(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = [
        (row(domain, 3, 3), generator.integers(0, 4, 6).tolist()) for domain in ("chat", "math", "code", "safety") * 5
    ]
    expected = {}
    for domain in ("chat", "math", "code", "safety"):
        inside = [of for one, of in rows if one.subset == domain]
        matrix = [[sum(of[i] > of[3 + j] for of in inside) / len(inside) for j in range(3)] for i in range(3)]
        hard = sum(matrix[i][j] for i in range(3) for j in range(3) if j > i) / 3
        easy = sum(matrix[i][j] for i in range(3) for j in range(3) if j < i) / 3
        expected[domain] = (hard + easy + sum(matrix[i][i] for i in range(3)) / 3) / 3
    found = scored("rm_bench", rows)
    assert {name: found.sections[name] for name in expected} == {
        n: pytest.approx(s, **CLOSE) for n, s in expected.items()
    }
    assert found.overall == pytest.approx(sum(expected.values()) / 4, **CLOSE)
