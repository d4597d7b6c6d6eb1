"""What an export lost: its predictions beside the unquantised student's, on conversations that trained neither."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from core.records import LABELS
from eval.bootstrap import Resampling
from eval.config import FidelityConfig
from eval.intervals import LEVEL, Estimate, Groups, Interval
from eval.means import Means
from eval.metrics import flip_rows, log_loss_rows, predict
from eval.reliability import BINS, calibration_error_rows
from eval.results import read_result

FIDELITY = "fidelity.json"
WORST = 10
ROUNDING = 1e-9  # 3 of 200 rows are not more than 0.015
POWER = 0.8  # how often as many rows as `rows_needed` tell
WITHIN, BEYOND, CANNOT_TELL = "within", "beyond", "cannot tell"
NEVER_NEGATIVE = ("kl", "regret")
EITHER_WAY = ("flip_rate",)  # fewer flips are another judge, too
Logits = tuple[np.ndarray, np.ndarray]  # of order ab and of order ba, each [n, 3] in the conversation's own a and b


@dataclass(frozen=True)
class Loss:
    """A difference with its 95% interval, its limit, and what it says of that.

    `verdict`: "within" or "beyond" where the whole interval lies there, else "cannot tell", with the `rows_needed`
    (None where no number could tell); None without a limit.
    """

    difference: float
    ci: Interval
    limit: float | None
    verdict: str | None
    rows_needed: int | None


@dataclass(frozen=True)
class Moved:
    """A conversation with KL(student || export) in nats, and both judges' probabilities by label."""

    id: str
    kl: float
    student: Mapping[str, float]
    export: Mapping[str, float]


@dataclass(frozen=True)
class Fidelity:
    """Both judges' figures on the same rows, and how far apart they are, as `fidelity.json` holds it.

    `taught`: of how many of the rows the student's teachers saw the votes. `intervals`: how they are made
    (`means.Means`). `worst`: the conversations that moved most. `differences`, by name:

    - `log_loss`: the export's minus the student's, in nats, paired; `kl`: the mean of KL(student || export), in nats
    - `verdicts`: share of conversations whose most likely label is another one; `regret`: the probability, by the
      student, that following the export's verdicts gives away, which near ties do not inflate
    - `flip_rate`: of the share of verdicts that depend on the order; `ece`: of the adaptive calibration error, by
      `reliability.calibration_error_rows`
    """

    rows: int
    student_log_loss: float
    student_flip_rate: float
    student_ece: float
    log_loss: float
    flip_rate: float
    ece: float
    intervals: str
    differences: Mapping[str, Loss]
    worst: Sequence[Moved]
    taught: int | None = None


def fidelity(
    student: Logits,
    export: Logits,
    ids: Sequence[str],
    votes: np.ndarray,
    groups: Groups,
    limits: FidelityConfig,
    *,
    resampling: Resampling,
    taught: int | None = None,
) -> Fidelity:
    """Compare an export with its student on rows of `votes` [n, labels]: logits of both orders, each like them."""
    before, after = predict(*student), predict(*export)
    figures = {
        "log_loss": (log_loss_rows(before, votes), log_loss_rows(after, votes)),
        "flip_rate": (flip_rows(*student), flip_rows(*export)),
        "ece": tuple(calibration_error_rows(of, votes, BINS, equal_mass=True) for of in (before, after)),
    }
    kl = (before * np.log(before / after)).sum(axis=1)
    first, second = before.argmax(axis=1), after.argmax(axis=1)
    rows = np.arange(len(before))
    columns = {
        "log_loss": figures["log_loss"][1] - figures["log_loss"][0],
        "kl": kl,
        "verdicts": (first != second).astype(float),
        "regret": before[rows, first] - before[rows, second],
        "flip_rate": figures["flip_rate"][1] - figures["flip_rate"][0],
        "ece": figures["ece"][1] - figures["ece"][0],
    }
    means = Means(columns, groups, resampling)
    return Fidelity(
        rows=len(ids),
        **{f"student_{name}": float(of[0].mean()) for name, of in figures.items()},
        **{name: float(of[1].mean()) for name, of in figures.items()},
        intervals=means.method,
        differences={name: judged(name, means.mean(name), getattr(limits, name)) for name in columns},
        worst=[Moved(ids[i], float(kl[i]), _named(before[i]), _named(after[i])) for i in np.argsort(-kl)[:WORST]],
        taught=taught,
    )


def judged(name: str, estimate: Estimate, limit: float | None) -> Loss:
    """What the difference `name` says of its limit."""
    low, high = _interval(name, estimate)
    if limit is None:
        return Loss(estimate.value, (low, high), None, None, None)
    least, most = -limit - ROUNDING if name in EITHER_WAY else -math.inf, limit + ROUNDING
    if low > most or high < least:
        verdict = BEYOND
    elif least <= low and high <= most:
        verdict = WITHIN
    else:
        verdict = CANNOT_TELL
    needed = rows_needed(estimate, (low, high), (least, most)) if verdict == CANNOT_TELL else None
    return Loss(estimate.value, (low, high), limit, verdict, needed)


def rows_needed(estimate: Estimate, interval: tuple[float, float], limits: tuple[float, float]) -> int | None:
    """How many rows like these would tell, four times in five, on which side of its limits a difference lies.

    That is, if the true difference is the measured one, since that is the best guess there is; it is uncertain itself,
    so take the number for its size. An interval shrinks with the square root of the rows and must leave out the nearer
    limit, and as another sample's value falls to either side of the true one, mostly with room to spare: the sample
    size formula n ((z₀.₉₇₅ + z₀.₈) error / distance)². The error is the one that half the interval stands for, which is
    not zero for a share of none; as a share's interval is lopsided, its longer side must leave out the limit, too. None
    where the measured value lies on a limit, which no number of rows tells apart.
    """
    distance = min(abs(limit - estimate.value) for limit in limits)
    if distance <= 2 * ROUNDING:
        return None
    low, high = interval
    half, longer = (high - low) / 2, max(high - estimate.value, estimate.value - low)
    margin = 1 + stats.norm.ppf(POWER) / stats.norm.isf(LEVEL / 2)
    return math.ceil(estimate.count * (max(margin * half, longer) / distance) ** 2)


def read_fidelities(artefacts: Mapping[str, Path]) -> dict[str, Fidelity]:
    """What was found of those artefacts that are exports, by judge; not what earlier versions found."""
    paths = {judge: path / FIDELITY for judge, path in artefacts.items()}
    written = {judge: path for judge, path in paths.items() if path.exists()}
    return {
        judge: read_result(Fidelity, path)
        for judge, path in written.items()
        if "differences" in json.loads(path.read_text())
    }


def exceeded(differences: Mapping[str, Loss]) -> list[str]:
    """The limits that are broken, each in words; none where the export may be used in the student's place."""
    return [_words(name, of) for name, of in differences.items() if of.verdict == BEYOND]


def untold(differences: Mapping[str, Loss], rows: int) -> list[str]:
    """The limits of which so many rows cannot tell whether they are broken, each in words."""
    return [
        f"{_words(name, of)}: {rows} conversations cannot tell, {_needed(of.rows_needed)}"
        for name, of in differences.items()
        if of.verdict == CANNOT_TELL
    ]


def _interval(name: str, estimate: Estimate) -> tuple[float, float]:
    if name == "verdicts":
        return estimate.share_interval(LEVEL)
    if name == "flip_rate":
        return estimate.share_difference_interval(LEVEL)
    low, high = estimate.interval(LEVEL)
    return (max(0.0, low), high) if name in NEVER_NEGATIVE else (low, high)


def _words(name: str, of: Loss) -> str:
    low, high = of.ci
    return f"{name} differs by {of.difference:.3g} ({low:.3g} to {high:.3g}), fidelity.{name}={of.limit:g}"


def _needed(rows: int | None) -> str:
    return "and no number could" if rows is None else f"about {rows:,} could"


def _named(probabilities: np.ndarray) -> dict[str, float]:
    return dict(zip(LABELS[: len(probabilities)], probabilities.tolist(), strict=True))
