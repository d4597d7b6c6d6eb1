"""What a judge's verdicts cost beside what they are worth: log loss, tokens of a conversation, hours on a T4."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from core.models.flops import Lengths
from core.records import ORDERS
from eval.bootstrap import Resampling
from eval.intervals import Groups, Interval
from eval.judges.answers import Answers
from eval.means import Means
from eval.metrics import log_loss_rows, predict
from students.export.config import T4Config
from students.export.formats import FORMATS
from students.export.t4.hours import hours_of_work

Way = Literal["both orders", "one order", "each response"]
Logits = tuple[np.ndarray, np.ndarray]  # of order ab and of order ba, each [n, labels]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One way to ask a judge.

    `tokens` of a conversation's prompts, the mean. `hours` of one T4 for `Costs.conversations`, from the fastest to the
    slowest rate, computed as the plan does: None where the model is not here, or does not fit. `log_loss` of one order
    is the mean over which one is shown.
    """

    way: Way
    tokens: float
    hours: Interval | None
    log_loss: float
    log_loss_ci: Interval


@dataclass(frozen=True)
class Costs:
    """Every judge that reads responses, in each way to ask it; `t4`: the rates and the work that hours are of."""

    conversations: int
    t4: Mapping[str, Any]
    judges: Mapping[str, Sequence[Cost]]


def measure_costs(
    answers: Mapping[str, Answers],
    logits: Mapping[str, Logits],
    votes: np.ndarray,
    groups: Groups,
    resampling: Resampling,
    t4: T4Config,
) -> Costs:
    """Costs of those of the judges whose answers tell how long their prompts were.

    A pairwise judge may be asked in both orders, or in one; a pointwise one reads each response once.
    """
    asked = {
        (name, way): rows
        for name, of in answers.items()
        if tells_lengths(of.scores)
        for way, rows in _losses(*logits[name], votes, of.pointwise).items()
    }
    if not asked:
        return Costs(t4.conversations, known_rates(t4), {})
    means = Means(asked, groups, resampling)
    judges: dict[str, list[Cost]] = {}
    for name, way in asked:
        prompts = 1 if way == "one order" else len(ORDERS)
        cost = Cost(
            way=way,
            tokens=prompts * _lengths(answers[name].scores).mean,
            hours=_hours(answers[name], prompts, t4),
            **means.figures({"log_loss": (name, way)}),
        )
        judges.setdefault(name, []).append(cost)
    return Costs(t4.conversations, known_rates(t4), judges)


def tells_lengths(scores: pl.DataFrame) -> bool:
    """Whether each prompt's length is known. Of stored opinions, or those of a fit, it is not: they have 0."""
    lengths = scores["prompt_tokens"] if "prompt_tokens" in scores.columns else None
    return lengths is not None and not lengths.null_count() and bool((lengths > 0).all())


def known_rates(t4: T4Config) -> dict[str, Any]:
    """What hours depend on, as metrics.json holds it."""
    return {name: value for name, value in asdict(t4).items() if name != "price_per_hour"}


def _losses(ab: np.ndarray, ba: np.ndarray, votes: np.ndarray, pointwise: bool) -> dict[Way, np.ndarray]:
    both = log_loss_rows(predict(ab, ba), votes)
    if pointwise:
        return {"each response": both}
    return {
        "both orders": both,
        "one order": (log_loss_rows(predict(ab, ab), votes) + log_loss_rows(predict(ba, ba), votes)) / 2,
    }


def _lengths(scores: pl.DataFrame) -> Lengths:
    lengths = scores["prompt_tokens"].cast(pl.Float64).to_numpy()
    return Lengths(float(lengths.mean()), float((lengths**2).mean()))


def _hours(answers: Answers, prompts: int, t4: T4Config) -> Interval | None:
    model = answers.model
    if model is None:
        return None
    return hours_of_work(t4, FORMATS[model.format], model.shape, _lengths(answers.scores), prompts)
