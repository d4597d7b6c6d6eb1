"""Log loss against cost of a small judge that asks a large one, beside chance and an oracle."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from eval.bootstrap import Resampling
from eval.cascades import PILOTS, SHARES, Point, chosen, curve
from eval.metrics import log_loss_rows
from eval.report.charts import DRAWN, cascade_charts
from eval.second_opinions import Opinions
from studies.cascade import DEAR, runs
from tests.eval.evaluations import Evaluated, evaluate, typed

ROWS = 2000
RESAMPLING = Resampling(200, 0)


@pytest.fixture(scope="module")
def simulated() -> dict[str, list[Point]]:
    """The curves of the study's judges on one file."""
    conversations, law = simulate(SimulateConfig(ROWS, seed=5))
    words = np.array([len(c.response_a[0]) + len(c.response_b[0]) for c in conversations], float)
    truth = law["probabilities"].to_numpy()
    return {name: [*run.points] for name, run in runs(truth, words, [c.prompt[0] for c in conversations], seed=5)}


def test_an_overconfident_student_asks_where_it_gains(simulated: dict[str, list[Point]]) -> None:
    points = simulated["an overconfident student"]
    for point in points[1:-1]:
        assert point.oracle < point.log_loss < point.random
    assert all(point.over_random.beats for point in points[2:-1])


@pytest.mark.parametrize("name", ["a student that hesitates where it errs", "a second judge that is worse"])
def test_no_choice_is_better_than_the_oracle_s_and_the_ends_are_the_judges(
    simulated: dict[str, list[Point]], name: str
) -> None:
    points = simulated[name]
    first, last = points[0], points[-1]
    assert first.asked == 0 and last.asked == 1 and first.random == first.log_loss == first.oracle
    assert last.cost == pytest.approx((1 + DEAR) * first.cost)
    for point in points:
        assert point.oracle <= min(point.log_loss, point.random) + 1e-12
        assert point.random == pytest.approx(first.log_loss + point.share * (last.log_loss - first.log_loss))
        assert point.cost <= first.cost + point.share * (last.cost - first.cost) + 1e-9, "no budget is exceeded"
        assert point.over_random.difference == pytest.approx(point.random - point.log_loss)


def test_where_the_second_judge_is_worse_it_is_believed_all_the_same(simulated: dict[str, list[Point]]) -> None:
    """Without votes nobody can tell: docs/predict.md says so, and the curve on votes shows it."""
    losses = [point.log_loss for point in simulated["a second judge that is worse"]]
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.05


def test_a_curve_is_what_its_choice_gives() -> None:
    rng = np.random.default_rng(0)
    ab, ba, second = rng.normal(size=(3, 300, 3))
    votes, dear = np.eye(3)[rng.integers(0, 3, 300)], rng.uniform(1, 9, 300)
    first = Opinions(ab, ba, rng.uniform(50, 500, 300))
    points = curve(first, second, (first.tokens, dear), votes, [str(i) for i in range(300)], RESAMPLING, pilot=20)
    for share, point in zip(SHARES, points, strict=True):
        losses, shares_asked = [], []
        for seed in range(PILOTS):
            spent, asked = 0.0, np.zeros(300, dtype=bool)
            for row in chosen(first, second, share, 20, seed):
                if spent + dear[row] > share * dear.sum() * (1 + 1e-9):
                    break
                spent, asked[row] = spent + dear[row], True
            answer = np.where(asked[:, None], second, first.logits)
            losses.append(log_loss_rows(softmax(answer, axis=1), votes).mean())
            shares_asked.append(asked.mean())
        assert point.log_loss == pytest.approx(np.mean(losses)) and point.share == share
        assert point.asked == pytest.approx(np.mean(shares_asked))
    again = curve(first, second, (first.tokens, dear), votes[::-1], [str(i) for i in range(300)], RESAMPLING, pilot=20)
    assert [p.asked for p in again] == [p.asked for p in points], "who is asked does not hang on votes"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return evaluate(tmp_path_factory.mktemp("cascades"), rows=60)


def test_every_pair_of_an_evaluation_has_a_curve_from_the_cheaper_judge_to_the_dearer(evaluated: Evaluated) -> None:
    metrics = json.loads((evaluated.folder / "metrics.json").read_text())
    found, costs = metrics["cascades"], metrics["costs"]["judges"]
    pairs = {frozenset((of["small"], of["large"])): of for of in found}
    assert len(found) == len(pairs) == len(costs) * (len(costs) - 1) // 2 > 3
    for of in found:
        small, large = (costs[of[name]][0] for name in ("small", "large"))
        known = bool(small["hours"] and large["hours"])
        assert of["unit"] == ("hours" if known else "tokens")
        low, high = (np.mean(cost["hours"]) if known else cost["tokens"] for cost in (small, large))
        first, *_, last = of["points"]
        assert low <= high and first["cost"] == pytest.approx(low) and last["cost"] == pytest.approx(low + high)
        for point, judge in ((first, "small"), (last, "large")):
            assert point["log_loss"] == pytest.approx(metrics["judges"][of[judge]]["log_loss"])
    exported = pairs[frozenset(("student", "student_w8a8"))]
    assert (exported["small"], exported["unit"]) == ("student_w8a8", "hours")
    assert pairs[frozenset(("student", "teacher"))]["unit"] == "tokens", "nobody knows how large this teacher is"


def test_the_page_draws_the_pairs_that_anybody_would_put_in_a_row(evaluated: Evaluated) -> None:
    evaluation = typed(evaluated.folder, json.loads((evaluated.folder / "metrics.json").read_text()))
    drawn = [
        {chart.cascade.small, chart.cascade.large} for chart in cascade_charts(evaluation.cascades, evaluation.costs)
    ]
    assert (
        {"student", "teacher"} in drawn and {"student", "student_w8a8"} in drawn and {"other.one", "student"} in drawn
    )
    assert not any("student_no_teacher" in pair and "other.one" not in pair for pair in drawn) and len(drawn) <= DRAWN
    for at in ("student, then teacher", "student_w8a8, then student"):
        assert evaluated.page.count(f"<caption>{at}</caption>") == 1
    assert 'href="#cascades"' in evaluated.page


def test_an_evaluation_of_before_has_none(tmp_path: Path, evaluated: Evaluated) -> None:
    metrics = json.loads((evaluated.folder / "metrics.json").read_text())
    del metrics["cascades"]
    evaluation = typed(tmp_path, metrics)
    assert not evaluation.cascades and not cascade_charts(evaluation.cascades, evaluation.costs)
