"""The student against its variants over several training seeds: is a difference larger than the luck of a run?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from rich.table import Table
from scipy import stats

from core.errors import UserError
from core.labels import Labels, among
from core.records import Conversation
from core.scoring import logits_by_order
from eval.comparison import BASELINE
from eval.intervals import LEVEL, Estimate, Groups, Interval, Jackknife, number_groups
from eval.judges.answers import Answers
from eval.judges.candidates import STUDENT
from eval.metrics import accuracy_rows, flip_rate, log_loss_rows, predict
from eval.reliability import expected_calibration_error
from eval.truth import TRUTHS


@dataclass(frozen=True)
class SeedRun:
    """What one training run is worth: the log loss of each scored row [n], and its figures as shares of one."""

    losses: np.ndarray
    accuracy: float
    ece: float
    flip_rate: float

    @classmethod
    def of(cls, logits_ab: np.ndarray, logits_ba: np.ndarray, votes: np.ndarray, bins: int) -> Self:
        """From its logits in both orders and the votes, each [n, labels]."""
        probabilities = predict(logits_ab, logits_ba)
        return cls(
            log_loss_rows(probabilities, votes),
            float(accuracy_rows(probabilities, votes).mean()),
            expected_calibration_error(probabilities, votes, bins),
            flip_rate(logits_ab, logits_ba),
        )


@dataclass(frozen=True)
class OverSeeds:
    """The mean of a judge's runs; `taught`: of how many of the rows its teachers saw the votes, None: unknown."""

    log_loss: float
    log_loss_ci: Interval
    log_loss_sd: float
    accuracy: float
    ece: float
    flip_rate: float
    log_loss_by_seed: Sequence[float]
    taught: int | None


@dataclass(frozen=True)
class Gain:
    """By how many nats the student is better than a variant, with the 95% interval."""

    difference: float
    ci: Interval


@dataclass(frozen=True)
class SeedSummary:
    """The student and its variants over training `seeds`, beside judges that have none, and what it gains over each.

    `over_surface`: what each gains over `BASELINE`, where that is among them. `truth`: whose opinion they are measured
    by (`eval.truth`).
    """

    seeds: Sequence[int]
    rows: int
    judges: Mapping[str, OverSeeds]
    gains: Mapping[str, Gain]
    over_surface: Mapping[str, Gain]
    truth: str = "votes"


def compare_seeds(
    answers: Mapping[str, Sequence[Answers]],
    seeds: Sequence[int],
    scored: Sequence[Conversation],
    labels: Labels,
    bins: int,
    truth: str,
) -> SeedSummary:
    """From the answers of each judge's runs, which follow `seeds`, to the conversations scored, voted for `labels` by
    people, or by what `truth` says. A judge that no seed changes has one answer."""
    ids, votes = [c.id for c in scored], among(np.array([c.votes for c in scored]), labels)
    runs = {
        judge: [SeedRun.of(*logits_by_order(one.scores, ids, labels), votes, bins) for one in of]
        for judge, of in answers.items()
    }
    runs = {judge: of * len(seeds) if len(of) == 1 else of for judge, of in runs.items()}
    taught = {judge: most([one.taught for one in of]) for judge, of in answers.items()}
    return summarise_seeds(runs, seeds, [c.group for c in scored], taught, truth)


def most(taught: Sequence[int | None]) -> int | None:
    """The largest of the runs' counts; None where one of them is unknown."""
    known = [count for count in taught if count is not None]
    return max(known) if len(known) == len(taught) else None


def summarise_seeds(
    runs: Mapping[str, Sequence[SeedRun]],
    seeds: Sequence[int],
    groups: Groups,
    taught: Mapping[str, int | None],
    truth: str = "votes",
) -> SeedSummary:
    """`runs` of each judge follow `seeds`, their losses the rows of `groups`; one judge is `STUDENT`.

    Every seed is tested on every conversation, so prompts and seeds are two ways in which the mean may vary, and their
    variances add up (Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering"; what both share is
    left in, which widens the interval a little). Student's t has the degrees of freedom of the sum (Satterthwaite
    1946): near those of the prompts where runs agree, near those of the seeds where luck rules. Runs of one seed stay
    together.
    Raises `UserError` for fewer than two seeds.
    """
    count = len(seeds)
    if count < 2:
        raise UserError(
            f"eval.seeds={list(seeds)}: an interval over seeds needs two or more; train another with seed=N"
        )
    losses = {judge: np.array([run.losses for run in of]) for judge, of in runs.items()}
    for judge, of in losses.items():
        assert of.shape == (count, len(groups)), f"{judge}: losses of shape {of.shape}"
    jackknife = Jackknife(number_groups(groups))

    def gain(judge: str, rival: str) -> Gain:
        found = _mean(losses[rival] - losses[judge], jackknife)
        return Gain(found.value, found.interval(LEVEL))

    return SeedSummary(
        seeds=list(seeds),
        rows=len(groups),
        judges={judge: _over_seeds(of, _mean(losses[judge], jackknife), taught[judge]) for judge, of in runs.items()},
        gains={judge: gain(STUDENT, judge) for judge in losses if judge != STUDENT},
        over_surface={judge: gain(judge, BASELINE) for judge in losses if BASELINE in losses and judge != BASELINE},
        truth=truth,
    )


def _mean(losses: np.ndarray, jackknife: Jackknife) -> Estimate:
    """The mean of [seeds, rows] with the error of prompts and seeds together."""
    over_prompts, by_seed = jackknife.whole(losses.mean(axis=0)), losses.mean(axis=1)
    error, freedom = np.array([over_prompts.error, stats.sem(by_seed)]), [over_prompts.freedom, len(by_seed) - 1]
    variance = (error**2).sum()
    shared = variance**2 / (error**4 / freedom).sum() if variance else over_prompts.freedom
    return Estimate(over_prompts.value, float(np.sqrt(variance)), float(shared) + 1, losses.shape[1])


def _over_seeds(runs: Sequence[SeedRun], mean: Estimate, taught: int | None) -> OverSeeds:
    by_seed = [float(run.losses.mean()) for run in runs]
    return OverSeeds(
        log_loss=float(np.mean(by_seed)),
        log_loss_ci=mean.interval(LEVEL),
        log_loss_sd=float(np.std(by_seed, ddof=1)),
        accuracy=float(np.mean([run.accuracy for run in runs])),
        ece=float(np.mean([run.ece for run in runs])),
        flip_rate=float(np.mean([run.flip_rate for run in runs])),
        log_loss_by_seed=by_seed,
        taught=taught,
    )


def seeds_table(summary: SeedSummary) -> Table:
    """What `summarise_seeds` gave, for the terminal."""
    truth = TRUTHS[summary.truth]
    table = Table(
        title=f"{len(summary.seeds)} training seeds: {', '.join(map(str, summary.seeds))}",
        caption=f"measured by {truth.it}; intervals: 95%, over rows and seeds; "
        "gain: by how many nats the student is better, and each judge than surface, paired",
    )
    table.add_column("judge", overflow="fold")
    gained = ("student's gain", "over surface") if summary.over_surface else ("student's gain",)
    for heading in ("log loss", *gained):
        table.add_column(heading, justify="right", no_wrap=True)
    for judge, of in summary.judges.items():
        gains = [summary.gains.get(judge), summary.over_surface.get(judge)]
        saw = f"\ncross-validated, its teachers saw {of.taught} of {summary.rows} {truth.rows}" if of.taught else ""
        saw = "\nnobody can tell what it learned from" if of.taught is None else saw
        low, high = of.log_loss_ci
        cells = [f"{of.log_loss:.4f}\n{low:.4f} to {high:.4f}", *map(_cell, gains)]
        table.add_row(judge + saw, *cells[: len(gained) + 1])
    return table


def _cell(gain: Gain | None) -> str:
    return "" if gain is None else f"{gain.difference:+.4f}\n{gain.ci[0]:+.4f} to {gain.ci[1]:+.4f}"
