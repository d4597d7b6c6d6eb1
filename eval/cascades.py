"""What a small judge that asks a large one is worth: log loss against cost, over how many rows the large one reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import polars as pl
from scipy.special import softmax

from eval.bootstrap import Resampling
from eval.comparison import Pair
from eval.costs import Cost
from eval.intervals import Groups, Interval
from eval.judges.answers import Answers
from eval.means import Difference, Means
from eval.metrics import log_loss_rows
from eval.second_opinions import Opinions, draw_pilot, in_turn

SHARES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of what it would cost to show the large judge everything
PILOT = 512  # as predict.pilot
PILOTS = 8  # a curve is the mean over so many, since the luck of one is no figure of the judges'
ROUNDING = 1e-9
Unit = Literal["hours", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """The log loss in nats for one budget: a `share` of the large judge's cost.

    `cost` is that of both judges. `asked`: the share of conversations that the large one reads. These and the log loss
    are means over `PILOTS`. `random` and `oracle`: the log loss where chance chooses, in expectation, and where the
    votes do. `over_random`: by how much the cascade's is lower than chance's, paired.
    """

    share: float
    cost: float
    asked: float
    log_loss: float
    log_loss_ci: Interval
    random: float
    oracle: float
    over_random: Difference


@dataclass(frozen=True)
class Cascade:
    """A pair of judges, the cheaper one first. `unit` of costs: hours of one T4 for `Costs.conversations`, the middle
    of their range, or tokens a conversation where a judge's hours are not known."""

    small: str
    large: str
    unit: Unit
    points: Sequence[Point]


def measure_cascades(
    answers: Mapping[str, Answers],
    logits: Mapping[str, Pair],
    costs: Mapping[str, Sequence[Cost]],
    votes: np.ndarray,
    ids: Sequence[str],
    groups: Groups,
    resampling: Resampling,
) -> list[Cascade]:
    """The curve of every pair of the judges whose `costs` are known, each asked as a cascade asks: in both orders.

    The cheaper one is asked first; of equally cheap ones that of the higher log loss.
    """
    found = []
    for pair in combinations(costs, 2):
        whole = {name: costs[name][0] for name in pair}  # both orders, or each response
        unit: Unit = "hours" if all(cost.hours for cost in whole.values()) else "tokens"
        price = {name: _price(cost, unit) for name, cost in whole.items()}
        small, large = sorted(pair, key=lambda name: (price[name], -whole[name].log_loss))
        tokens = {name: _tokens(answers[name], ids) for name in pair}
        cheap, dear = (tokens[name] * (price[name] / tokens[name].mean()) for name in (small, large))
        first, second = Opinions(*logits[small], tokens[small]), Opinions(*logits[large], tokens[large]).logits
        found.append(Cascade(small, large, unit, curve(first, second, (cheap, dear), votes, groups, resampling)))
    return found


def curve(
    first: Opinions,
    second: np.ndarray,
    costs: tuple[np.ndarray, np.ndarray],
    votes: np.ndarray,
    groups: Groups,
    resampling: Resampling,
    pilot: int = PILOT,
) -> list[Point]:
    """The points of `SHARES`: what stands where `second` [n, labels] logits take the place of the first opinions'.

    `costs`: of the first and of the second opinion on each conversation, [n] each. The rows are chosen as
    `distill.predict` chooses them, without their votes, and each share is a budget of its own, whose pilot is paid from
    it. All figures are of the same conversations on the same draws.
    """
    cheap, dear = costs
    before, after = (log_loss_rows(softmax(logits, axis=1), votes) for logits in (first.logits, second))
    gained = before - after
    columns: dict[tuple[str, float], np.ndarray] = {}
    asked: dict[float, np.ndarray] = {}
    for share in SHARES:
        budget = share * dear.sum()
        orders = (chosen(first, second, share, pilot, seed) for seed in range(PILOTS))
        asked[share] = np.mean([within(order, dear, budget) for order in orders], axis=0)
        oracle = within(np.argsort(-gained / dear, kind="stable"), dear, budget) & (gained > 0)
        columns["cascade", share] = before - gained * asked[share]
        columns["random", share] = before - gained * share
        columns["oracle", share] = before - gained * oracle
    means = Means(columns, groups, resampling)
    return [
        Point(
            share=share,
            cost=float((cheap + dear * asked[share]).mean()),
            asked=float(asked[share].mean()),
            random=float(columns["random", share].mean()),
            oracle=float(columns["oracle", share].mean()),
            over_random=Difference.of(means.difference(("random", share), ("cascade", share))),
            **means.figures({"log_loss": ("cascade", share)}),
        )
        for share in SHARES
    ]


def chosen(first: Opinions, second: np.ndarray, share: float, pilot: int, seed: int = 0) -> np.ndarray:
    """All positions in the order in which they get the second opinion, where a `share` of them is to."""
    drawn = draw_pilot(len(second), round(share * len(second)), pilot, seed)
    return np.concatenate([drawn, in_turn(first, drawn, second[drawn])])


def within(order: np.ndarray, costs: np.ndarray, budget: float) -> np.ndarray:
    """Which rows a budget lasts for, in that order: bool [n]."""
    asked = np.zeros(len(costs), dtype=bool)
    asked[order[np.cumsum(costs[order]) <= budget * (1 + ROUNDING)]] = True
    return asked


def _price(cost: Cost, unit: Unit) -> float:
    """Of all conversations in the middle of their range of hours, or of one in tokens."""
    return float(np.mean(cost.hours)) if unit == "hours" and cost.hours else cost.tokens


def _tokens(answers: Answers, ids: Sequence[str]) -> np.ndarray:
    """Tokens of both prompts of each conversation, [ids]."""
    total = answers.scores.group_by("id").agg(pl.col("prompt_tokens").cast(pl.Float64).sum())
    found = pl.DataFrame({"id": ids}).join(total, on="id", how="left", maintain_order="left")
    return found["prompt_tokens"].to_numpy()
