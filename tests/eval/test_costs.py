"""What a judge costs beside its log loss: tokens counted by hand, hours as the plan has them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from core.models.flops import Lengths, scoring_flops
from core.records import ORDERS
from core.scoring import SCORES
from eval.bootstrap import Resampling
from eval.costs import Costs, measure_costs
from eval.judges.answers import Answers, ModelSize
from eval.metrics import log_loss_rows, predict
from students.export.formats import FORMATS
from students.export.t4.hours import t4_hours
from tests.composing import configured
from tests.eval.evaluations import SHAPE

ROWS = 80
T4 = configured().t4
GROUPS = [str(i) for i in range(ROWS)]


def judged(pointwise: bool = False, model: ModelSize | None = None) -> tuple[Answers, tuple[np.ndarray, np.ndarray]]:
    """A judge whose prompts have 100 tokens in order ab and 200 in order ba."""
    generator = np.random.default_rng(0)
    ab = generator.normal(size=(ROWS, 3))
    ba = ab if pointwise else ab + generator.normal(size=(ROWS, 3))
    table = {"id": GROUPS * 2, "order": [o for o in ORDERS for _ in GROUPS], "logits": np.concatenate([ab, ba])}
    table |= {"prompt_tokens": [100] * ROWS + [200] * ROWS, "truncated": [False] * 2 * ROWS}
    return Answers(pl.DataFrame(table, schema=SCORES), 0, pointwise=pointwise, model=model), (ab, ba)


VOTES = np.eye(3)[np.random.default_rng(1).integers(0, 3, ROWS)]


def costs_of(answers: Answers, logits: tuple[np.ndarray, np.ndarray], t4: object = T4) -> Costs:
    return measure_costs({"student": answers}, {"student": logits}, VOTES, GROUPS, Resampling(100, 0), t4)  # type: ignore[arg-type]


def test_two_orders_cost_both_prompts_and_one_order_half_of_that() -> None:
    answers, (ab, ba) = judged(model=ModelSize(SHAPE, "w8a8"))
    both, one = costs_of(answers, (ab, ba)).judges["student"]
    assert (both.way, one.way) == ("both orders", "one order") and (both.tokens, one.tokens) == (300, 150)
    assert both.log_loss == pytest.approx(log_loss_rows(predict(ab, ba), VOTES).mean())
    single = [log_loss_rows(predict(order, order), VOTES).mean() for order in (ab, ba)]
    assert one.log_loss == pytest.approx(np.mean(single)) and one.log_loss > both.log_loss
    lengths = Lengths(150, (100**2 + 200**2) / 2)
    flops = T4.conversations * 2 * scoring_flops(SHAPE, lengths)
    assert both.hours == pytest.approx(t4_hours(T4, FORMATS["w8a8"], flops))
    assert one.hours == pytest.approx([hours / 2 for hours in both.hours or ()])


def test_a_pointwise_judge_has_one_way_to_be_asked() -> None:
    (only,) = costs_of(*judged(pointwise=True)).judges["student"]
    assert only.way == "each response" and only.tokens == 300 and only.hours is None


def test_what_does_not_fit_or_has_no_prompts_has_no_hours() -> None:
    large = ModelSize(replace(SHAPE, parameters=70 * 10**9, matrices=69 * 10**9), "merged")
    assert [cost.hours for cost in costs_of(*judged(model=large)).judges["student"]] == [None, None]
    answers, logits = judged()
    unread = replace(answers, scores=answers.scores.drop("prompt_tokens"))
    assert costs_of(unread, logits).judges == {}


def test_opinions_that_nobody_was_prompted_for_cost_nothing_that_is_known() -> None:
    """As a stored teacher's: no tokens are no cost of zero."""
    answers, logits = judged()
    stored = replace(answers, scores=answers.scores.with_columns(prompt_tokens=pl.lit(0, pl.Int32)))
    assert costs_of(stored, logits).judges == {}
    both = measure_costs(
        {"student": answers, "teacher": stored},
        {"student": logits, "teacher": logits},
        VOTES,
        GROUPS,
        Resampling(100, 0),
        T4,
    )
    assert [*both.judges] == ["student"]


def test_costs_remember_the_rates_that_hours_are_of() -> None:
    answers, logits = judged(model=ModelSize(SHAPE, "w8a8"))
    faster = replace(T4, int8=replace(T4.int8, tflops=[32, 80]))
    slow, fast = costs_of(answers, logits), costs_of(answers, logits, faster)
    assert slow.t4 != fast.t4 and "price_per_hour" not in slow.t4
    assert slow.judges["student"][0].hours == pytest.approx(
        [2 * hours for hours in fast.judges["student"][0].hours or ()]
    )
