"""How often a judge's prediction sets hold the vote, and how large they are, on the rows that are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.records import Conversation
from eval.conformal import Thresholds, sets_of
from eval.intervals import LEVEL, Interval, Jackknife
from eval.metrics import predict, shares
from eval.recalibration import Recalibration
from eval.slices import Way, by_shape, by_tag


@dataclass(frozen=True, kw_only=True)
class SetFigures:
    """Sets on `count` rows. `coverage`: the share of votes that they hold; `size`: how many labels, on average.

    Intervals at 95%, over first prompts; None where too few prompts tell.
    """

    count: int
    coverage: float
    coverage_ci: Interval | None
    size: float
    size_ci: Interval | None


@dataclass(frozen=True, kw_only=True)
class SetsOnSlice(SetFigures):
    """The same on one slice of a way to slice, which is named by `noun`."""

    noun: str
    label: str


@dataclass(frozen=True, kw_only=True)
class JudgeSets(SetFigures):
    """A judge's sets for a coverage of `asked`, fitted on `fitted_on` prompts. `whole`: the share of sets that rule out
    no label."""

    asked: float
    fitted_on: int
    whole: float
    slices: Sequence[SetsOnSlice]


def judge_sets(
    thresholds: Thresholds,
    recalibration: Recalibration,
    logits: tuple[np.ndarray, np.ndarray],
    conversations: Sequence[Conversation],
    votes: np.ndarray,
    coverage: float,
    truncated: np.ndarray | None,
) -> JudgeSets:
    """Of a judge that is asked in both orders, by the thresholds that lie beside it."""
    probabilities = predict(*(recalibration(of) for of in logits))
    inside = sets_of(probabilities, thresholds.least(coverage, orders=2))
    held, sizes = (inside * shares(votes)).sum(axis=1), inside.sum(axis=1).astype(float)
    labels = inside.shape[1]
    jackknife = Jackknife([c.group for c in conversations])
    ways: Sequence[Way] = [*by_shape(conversations, truncated), *by_tag(conversations, votes)]
    ways = [*{way.name: way for way in ways}.values()]  # a tag says what is guessed without it
    slices = [
        SetsOnSlice(noun=way.noun, label=label, **_figures(jackknife, held, sizes, rows, labels))
        for way in ways
        for label, rows in way.slices.items()
        if rows.any() and not rows.all()
    ]
    return JudgeSets(
        asked=coverage,
        fitted_on=thresholds.groups,
        whole=float(inside.all(axis=1).mean()),
        slices=slices,
        **_figures(jackknife, held, sizes, np.ones(len(held), dtype=bool), labels),
    )


def _figures(
    jackknife: Jackknife, held: np.ndarray, sizes: np.ndarray, rows: np.ndarray, labels: int
) -> dict[str, Any]:
    coverage, size = (jackknife.mean(of, rows) for of in (held, sizes))
    low, high = size.interval(LEVEL) if size else (0.0, 0.0)
    return {
        "count": int(rows.sum()),
        "coverage": float(held[rows].mean()),
        "coverage_ci": coverage and coverage.share_interval(LEVEL),
        "size": float(sizes[rows].mean()),
        "size_ci": size and (max(1.0, low), min(float(labels), high)),
    }
