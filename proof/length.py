r"""How much a judge, its teacher and people go by length, and what its ranking of models is without.

    python -m proof.length --data artifacts/data/alpaca_eval --teacher artifacts/logits/gpt4_turbo \
        artifacts/eval/proof_gpt4

A judge's share for a is regressed on which models answered and on the logarithm of how many times as many words a has
(as Dubois et al. 2024, arXiv 2404.04475, control AlpacaEval's win rates). The slope is what length is worth where the
models are the same: nats for twice as many words. The models' strengths beside it are length-controlled ratings; those
without the slope are plain ones. Printed are the slope with its 95% interval, over prompts, and how far both ratings
order the models as those of the first do, the teacher or people (Kendall's tau, of models that met: of others nobody
knows the order). Rows count that name both models and, without --teacher, have votes. The last line is JSON.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import minimize
from scipy.special import expit, softmax

from core.data.table import load_conversations
from core.records import Conversation
from core.scoring import swap_average
from core.store.reading import read_logits
from core.tables import read_parquet
from core.words import count_words
from eval.bootstrap import resample
from eval.intervals import LEVEL, number_groups
from eval.metrics import shares, win_rates

RIDGE = 0.01  # of strengths: keeps those finite of models that only won
DRAWS = 100
PEOPLE, TEACHER = "people", "teacher"


@dataclass(frozen=True)
class Games:
    """Pairs by two of `models`: who answered [n, 2], how many doublings of words a has over b [n], the prompts [n]."""

    ids: Sequence[str]
    models: Sequence[str]
    sides: np.ndarray
    doublings: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, conversations: Sequence[Conversation]) -> "Games":
        models = sorted({m for c in conversations for m in (c.model_a, c.model_b) if m})
        place = {model: i for i, model in enumerate(models)}
        words = np.array(
            [[count_words(" ".join(side)) for side in (c.response_a, c.response_b)] for c in conversations]
        )
        return cls(
            ids=[c.id for c in conversations],
            models=models,
            sides=np.array([[place[str(c.model_a)], place[str(c.model_b)]] for c in conversations]),
            doublings=np.log2(words[:, 0] + 1) - np.log2(words[:, 1] + 1),
            groups=number_groups([c.group for c in conversations]),
        )


@dataclass(frozen=True)
class Fit:
    """Strengths of the models in nats, and what twice as many words are worth; 0 where that was not asked for."""

    strengths: np.ndarray
    slope: float


def fit(games: Games, won: np.ndarray, weights: np.ndarray, *, length: bool) -> Fit:
    """The logistic regression of a's shares `won` [n], each pair counted `weights` [n] times."""
    count = len(games.models)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        strengths, slope = parameters[:count], parameters[count] * length
        lead = strengths[games.sides[:, 0]] - strengths[games.sides[:, 1]] + slope * games.doublings
        off = weights * (expit(lead) - won)
        gradient = np.zeros_like(parameters)
        np.add.at(gradient, games.sides[:, 0], off)
        np.add.at(gradient, games.sides[:, 1], -off)
        gradient[:count] += RIDGE * strengths
        gradient[count] = (off * games.doublings).sum() * length
        value = (weights * (np.logaddexp(0, lead) - won * lead)).sum() + RIDGE * (strengths**2).sum() / 2
        return float(value), gradient

    found = minimize(loss, np.zeros(count + 1), jac=True, method="L-BFGS-B").x
    return Fit(found[:count], float(found[count]) * length)


def slope_interval(games: Games, won: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the slope, prompts drawn with replacement."""
    draws = resample(games.groups.max() + 1, DRAWS, 0)
    slopes = [fit(games, won, times[games.groups].astype(float), length=True).slope for times in draws]
    low, high = np.quantile(slopes, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def same_order(mine: np.ndarray, theirs: np.ndarray, sides: np.ndarray) -> float:
    """Kendall's tau of two ratings, over the pairs of models that met (`sides` [n, 2])."""
    met = np.unique(np.sort(sides, axis=1), axis=0)
    leads = [np.sign(of[met[:, 0]] - of[met[:, 1]]) for of in (mine, theirs)]
    return float(np.mean(leads[0] * leads[1]))


def said(averaged: pl.DataFrame, ids: Sequence[str]) -> np.ndarray:
    """The shares for a, [n], by the mean logits of each id."""
    found = dict(averaged.select("id", "logits").iter_rows())
    return win_rates(softmax([found[i] for i in ids], axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="a folder that python -m eval wrote")
    parser.add_argument("--data", type=Path, required=True, help="prepared conversations")
    parser.add_argument("--teacher", type=Path, help="the store of a teacher")
    told = parser.parse_args()
    predictions = read_parquet(told.evaluation / "predictions.parquet")
    judged = {*predictions["id"]}
    rows = [c for c in load_conversations(told.data) if c.id in judged]
    counted = [c for c in rows if c.model_a and c.model_b and (told.teacher is not None or c.votes)]
    if not counted:
        lacking = "names both models" if told.teacher else "names both models and has votes"
        parser.exit(2, f"{told.data}: none of the {len(rows)} rows {lacking}\n")
    print(f"{len(counted)} of {len(rows)} rows count")
    games = Games.of(counted)
    won: dict[str, np.ndarray] = {}
    if told.teacher is not None:
        won[TEACHER] = said(swap_average(read_logits(told.teacher, "make teacher-logits")), games.ids)
    else:
        won[PEOPLE] = win_rates(shares(np.array([c.votes for c in counted], float)))
    for (judge,), of in predictions.group_by("judge", maintain_order=True):
        won[str(judge)] = said(swap_average(of), games.ids)
    report(games, won)


def report(games: Games, won: Mapping[str, np.ndarray]) -> None:
    """Print each judge's slope and how far its ratings agree with those of the first, plain and length-controlled."""
    once = np.ones(len(games.ids))
    fits = {judge: [fit(games, of, once, length=length) for length in (False, True)] for judge, of in won.items()}
    first, found = next(iter(fits.values())), {}
    for judge, own in fits.items():
        low, high = slope_interval(games, won[judge])
        plain, controlled = (
            same_order(mine.strengths, theirs.strengths, games.sides) for mine, theirs in zip(own, first, strict=True)
        )
        found[judge] = {"slope": own[1].slope, "ci": [low, high], "tau": plain, "length_controlled_tau": controlled}
        print(f"{judge}: {own[1].slope:+.3f} nats for twice the words ({low:+.3f} to {high:+.3f})")
        print(f"    models ordered as by the first: tau {plain:.3f}, length-controlled {controlled:.3f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
