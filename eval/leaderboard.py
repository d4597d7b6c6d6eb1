"""Ratings of the models that wrote the answers, from human votes or from a judge's probabilities in their place.

A judge may be right about rows and still rank models wrongly, or the reverse: whether its leaderboard is people's is a
question of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.special import expit
from scipy.stats import kendalltau, spearmanr

from core.errors import UserError
from core.records import Conversation
from eval.bootstrap import Resampling, interval, resample
from eval.intervals import Interval, number_groups
from eval.metrics import shares, win_rates

ANCHOR, POINTS = 1000.0, 400 / np.log(10)  # the mean rating; Elo points to a nat: 400 are odds of ten to one
RIDGE = 0.01  # of ratings: keeps those finite of models that only won, or that others were never compared with
STEPS, LONGEST_STEP, CLOSE = 100, 1.0, 1e-9  # Newton's, in nats
DRAWS_AT_A_TIME = 50  # of the bootstrap, as one stack of Hessians
MIN_MODELS = 3  # two have only one order


@dataclass(frozen=True)
class Ratings:
    """Elo points of `models` (sorted by name) and of each bootstrap draw, [models] and [draws, models].

    NaN in a draw that holds no game of a model. `games` [models] counts each conversation once for both of its sides.
    """

    models: list[str]
    points: np.ndarray
    drawn: np.ndarray
    games: np.ndarray

    def table(self) -> pl.DataFrame:
        """`model`, `rating`, `low` and `high` of its 95% interval, `games`; the best first."""
        low, high = zip(*(interval(column[~np.isnan(column)]) for column in self.drawn.T), strict=True)
        columns = {"model": self.models, "rating": self.points, "low": low, "high": high, "games": self.games}
        return pl.DataFrame(columns).sort("rating", "model", descending=[True, False])


@dataclass(frozen=True)
class Rating:
    """Elo points with their 95% interval."""

    rating: float
    low: float
    high: float


@dataclass(frozen=True)
class RatedModel:
    """A model's rating by people's votes on its `games`, and by each judge's probabilities in their place."""

    model: str
    games: int
    rating: float
    low: float
    high: float
    judges: Mapping[str, Rating]


@dataclass(frozen=True)
class Correlation:
    """How far two ratings order the models alike: Kendall's tau b and Spearman's rho, with 95% intervals.

    None where a rating puts all models in one place, or knows but one.
    """

    kendall: float | None
    kendall_ci: Interval | None
    spearman: float | None
    spearman_ci: Interval | None


@dataclass(frozen=True)
class Leaderboard:
    """`rows`: the games; `models` by people's rating; `correlations` of each judge's ratings with people's."""

    rows: int
    models: Sequence[RatedModel]
    correlations: Mapping[str, Correlation]


def leaderboard(
    conversations: Sequence[Conversation],
    votes: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    resampling: Resampling,
) -> Leaderboard | None:
    """People's ratings of the models, and what each judge would make of them on the same games.

    `votes` and `probabilities` are [n, labels]. None with fewer than three models, or where all games share one group.
    """
    named = np.array([c.model_a is not None and c.model_b is not None for c in conversations])
    games = pl.DataFrame(
        [(c.model_a, c.model_b, c.group) for c, whole in zip(conversations, named, strict=True) if whole],
        schema={"model_a": pl.String, "model_b": pl.String, "group": pl.String},
        orient="row",
    )
    models = pl.concat([games["model_a"], games["model_b"]]).n_unique()
    if models < MIN_MODELS or games["group"].n_unique() < 2:
        return None
    people = ratings(games, votes[named], resampling)
    rated = {judge: ratings(games, of[named], resampling) for judge, of in probabilities.items()}
    judged = {
        judge: {row["model"]: Rating(row["rating"], row["low"], row["high"]) for row in of.table().to_dicts()}
        for judge, of in rated.items()
    }
    return Leaderboard(
        rows=len(games),
        models=[
            RatedModel(**row, judges={judge: of[row["model"]] for judge, of in judged.items()})
            for row in people.table().to_dicts()
        ],
        correlations={judge: rank_correlation(of, people) for judge, of in rated.items()},
    )


def ratings(games: pl.DataFrame, outcomes: np.ndarray, resampling: Resampling) -> Ratings:
    """Bradley-Terry ratings in Elo points with mean 1000, from conversations between models.

    `games` has `model_a`, `model_b` and `group`, `outcomes` [n, labels] the votes on them, or a judge's probabilities;
    rows count one each, and a tie is half a win for each side, as Chatbot Arena counts it (Chiang et al. 2024, "Chatbot
    Arena", arXiv 2403.04132). It is a logistic regression on who played which side. The bootstrap draws groups, and
    the same ones for the same `games` and seed, so that two ratings can be compared draw by draw. Raises `UserError`
    for rows without a model's name, or where all share one group.
    """
    assert len(games) == len(outcomes), f"{len(games)} games, {len(outcomes)} outcomes"
    sides = games.select("model_a", "model_b")
    if lacking := len(sides) - len(sides.drop_nulls()):
        raise UserError(f"{lacking} of {len(games)} conversations lack a model's name: rate those that have both")
    models = sorted({*sides["model_a"], *sides["model_b"]})
    first, second = (pl.Series(side).cast(pl.Enum(models)).to_physical().to_numpy().astype(int) for side in sides)
    won = win_rates(shares(outcomes))
    count = len(models)
    cells = np.concatenate([first * count + second, second * count + first])  # of the matrix who won against whom
    scores = np.stack([won, 1 - won])
    members = number_groups(games["group"])

    def wins(times: np.ndarray) -> np.ndarray:
        """[models, models] where every group occurs so many `times`."""
        return np.bincount(cells, (scores * times[members]).ravel(), count**2).reshape(count, count)

    whole = np.ones(members.max() + 1)
    draws = resampling.draws
    drawn = np.empty((draws, count))
    stack = []
    for i, times in enumerate(resample(len(whole), draws, resampling.seed), start=1):
        stack.append(wins(times))
        if len(stack) == DRAWS_AT_A_TIME or i == draws:
            drawn[i - len(stack) : i] = elo_points(np.stack(stack))
            stack = []
    met = np.bincount(np.concatenate([first, second]), minlength=count)
    return Ratings(models, elo_points(wins(whole)[None])[0], drawn, met)


def elo_points(wins: np.ndarray) -> np.ndarray:
    """Ratings [k, models] of maximal likelihood for k tables [k, models, models] of who won how often against whom.

    Newton's method on the pairs' counts, which are all that the likelihood needs, with steps of limited length. A model
    without games gets NaN, the others the mean `ANCHOR`.
    """
    games = wins + wins.swapaxes(1, 2)
    strengths = np.zeros(wins.shape[:2])
    for _ in range(STEPS):
        chance = expit(strengths[:, :, None] - strengths[:, None, :])
        slope = (wins - games * chance).sum(axis=2) - RIDGE * strengths
        information = games * chance * (1 - chance)
        curvature = (information.sum(axis=2) + RIDGE)[:, :, None] * np.eye(wins.shape[1]) - information
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        strengths += step * np.minimum(1, LONGEST_STEP / np.maximum(longest, CLOSE))
        if longest.max() < CLOSE:
            break
    else:
        raise AssertionError(f"ratings still move by {longest.max():.1e} nats after {STEPS} steps")
    points = np.where(games.sum(axis=2) > 0, POINTS * strengths, np.nan)
    return np.asarray(points - np.nanmean(points, axis=1, keepdims=True) + ANCHOR)


def rank_correlation(judge: Ratings, human: Ratings) -> Correlation:
    """How far two ratings of the same games order the models alike.

    A drawn rating holds the luck of the sample twice, so that two of them agree less than the measured ones do; the
    interval is therefore the draws' spread about their mean, put about the measured value and cut at -1 and 1.
    """
    assert judge.models == human.models and judge.drawn.shape == human.drawn.shape, "ratings of other games or draws"
    found: dict[str, Any] = {}
    for name, correlation in {"kendall": kendalltau, "spearman": spearmanr}.items():
        measured = _correlate(correlation, judge.points, human.points)
        drawn = np.array([_correlate(correlation, *pair) for pair in zip(judge.drawn, human.drawn, strict=True)])
        known = drawn[~np.isnan(drawn)]
        if np.isnan(measured) or not known.size:
            found |= {name: None, f"{name}_ci": None}
        else:
            found |= {name: measured, f"{name}_ci": interval(np.clip(known - known.mean() + measured, -1, 1))}
    return Correlation(**found)


def _correlate(correlation: Callable[..., Any], ours: np.ndarray, theirs: np.ndarray) -> float:
    both = ~np.isnan(ours + theirs)
    if min(len(np.unique(side[both])) for side in (ours, theirs)) < 2:
        return float("nan")
    return float(correlation(ours[both], theirs[both]).statistic)
