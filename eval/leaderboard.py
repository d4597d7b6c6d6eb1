"""Ratings of the models that wrote the answers, from human votes or from a judge's probabilities in their place.

A judge may be right about rows and still rank models wrongly, or the reverse: whether its leaderboard is people's is a
question of its own. Ratings know nothing but who met whom and how it ended, so they also give a baseline: a judge that
reads the two names and not a word of the answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import kendalltau, spearmanr

from core.errors import UserError
from core.records import LABELS, Conversation
from core.scoring import SCORES
from eval.baselines import prior
from eval.metrics import interval, number_groups, resample, shares
from teachers.bradley_terry import BradleyTerry, davidson_loss

ANCHOR, POINTS = 1000.0, 400 / np.log(10)  # the mean rating; Elo points to a nat: 400 are odds of ten to one
RIDGE = 0.01  # of ratings: keeps those finite of models that only won, or that others were never compared with
PRIOR = 1.0  # of the baseline's ratings: their inverse variance about the mean, in nats; a deviation of 174 points
STEPS, LONGEST_STEP, CLOSE = 100, 1.0, 1e-9  # Newton's, in nats
DRAWS_AT_A_TIME = 50  # of the bootstrap, as one stack of Hessians


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


def ratings(games: pl.DataFrame, outcomes: np.ndarray, *, draws: int, seed: int) -> Ratings:
    """Bradley-Terry ratings in Elo points with mean 1000, from conversations between models.

    `games` has `model_a`, `model_b` and `group`, `outcomes` [n, 3] the votes, or a judge's probabilities, of its rows;
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
    share = shares(outcomes)
    won = share[:, 0] + share[:, 2] / 2
    count = len(models)
    cells = np.concatenate([first * count + second, second * count + first])  # of the matrix who won against whom
    scores = np.stack([won, 1 - won])
    members = number_groups(games["group"])

    def wins(times: np.ndarray) -> np.ndarray:
        """[models, models] where every group occurs so many `times`."""
        return np.bincount(cells, (scores * times[members]).ravel(), count**2).reshape(count, count)

    whole = np.ones(members.max() + 1)
    drawn = np.empty((draws, count))
    stack = []
    for i, times in enumerate(resample(len(whole), draws, seed), start=1):
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


def rank_correlation(judge: Ratings, human: Ratings) -> dict[str, Any]:
    """How far two ratings of the same games order the models alike: Kendall's tau b and Spearman's rho, with intervals.

    {"kendall", "kendall_ci", "spearman", "spearman_ci"}. A drawn rating holds the luck of the sample twice, so that two
    of them agree less than the measured ones do; the interval is therefore the draws' spread about their mean, put
    about the measured value and cut at -1 and 1. None where a rating puts all models in one place, or knows but one.
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
    return found


def _correlate(correlation: Callable[..., Any], ours: np.ndarray, theirs: np.ndarray) -> float:
    both = ~np.isnan(ours + theirs)
    if min(len(np.unique(side[both])) for side in (ours, theirs)) < 2:
        return float("nan")
    return float(correlation(ours[both], theirs[both]).statistic)


def bradley_terry(train: Sequence[Conversation], held_out: Sequence[Conversation]) -> pl.DataFrame:
    """A judge that knows only who wrote the answers: `id`, `order`, `logits` (own a and b), as those of baselines.py.

    Ratings of models and one rate of ties are fitted to the votes of `train` (`teachers.bradley_terry`, Davidson 1970);
    they are normal about their mean with precision `PRIOR`, where a model that never met a vote stays. As in
    `baselines.prior` one vote for each label is added. Conversations without both names get that prior; so do all if
    none of `train` has them.
    """
    scores = prior(train, held_out)
    games = [c for c in train if c.votes is not None and _named(c)]
    rated = [c for c in held_out if _named(c)] if games else []
    if not rated:
        return scores
    number = {model: i for i, model in enumerate(sorted({str(m) for c in games for m in (c.model_a, c.model_b)}))}
    differences = np.concatenate([_differences(games, number), np.zeros((len(LABELS), len(number)))])
    share = np.concatenate([shares(np.array([c.votes for c in games])), np.eye(len(LABELS))])
    start = np.zeros(len(number) + 1)
    best = minimize(davidson_loss, start, (differences, share, PRIOR), "L-BFGS-B", jac=True, options={"ftol": 1e-14})
    logits = BradleyTerry(best.x[:-1], float(best.x[-1])).logits(_differences(rated, number))
    named = {"id": [c.id for c in rated], "named": logits.astype(np.float32)}
    table = pl.DataFrame(named, schema={"id": pl.String, "named": SCORES["logits"]})
    joined = scores.join(table, on="id", how="left", maintain_order="left")
    return joined.select("id", "order", pl.coalesce("named", "logits").alias("logits"))


def _named(conversation: Conversation) -> bool:
    return conversation.model_a is not None and conversation.model_b is not None


def _differences(conversations: Sequence[Conversation], number: Mapping[str, int]) -> np.ndarray:
    """float64 [n, models]: 1 for the model of response a, -1 for that of b, nothing for models without a number."""
    differences = np.zeros((len(conversations), len(number)))
    for row, c in zip(differences, conversations, strict=True):
        for model, sign in ((c.model_a, 1), (c.model_b, -1)):
            if model is not None and model in number:
                row[number[model]] += sign
    return differences
