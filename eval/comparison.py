"""Any number of judges on the same conversations: their figures, their differences, and what people reach."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

from core.records import LABELS
from eval.bootstrap import Resampling
from eval.intervals import Groups, Interval, number_groups
from eval.means import Difference, Means
from eval.metrics import FIGURES, figure_rows, human_rows, log_loss_rows, predict, repeated
from eval.recalibration import Recalibration
from eval.reliability import calibration_errors, reliability, reliability_by_label

BASELINE = "surface"
COMPARED = {"log_loss": -1, "brier": -1, "accuracy": 1, "auc": 1}  # and the sign that makes more of it better
ON_REPEATED = ("log_loss", "accuracy")
HUMANS, RECALIBRATED = "humans", "recalibrated_log_loss"
Pair = tuple[np.ndarray, np.ndarray]  # logits [n, labels] of order ab and of order ba
Columns = dict[tuple[str, str], np.ndarray]  # float64 [n] of (judge, figure)


@dataclass(frozen=True)
class Roles:
    """Which of the judges is the teacher, the reference and the student; None for nobody."""

    teacher: str | None
    reference: str | None
    student: str | None = None


@dataclass(frozen=True)
class ConfidenceBin:
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class LabelBin:
    count: int
    predicted: float
    observed: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far confidence is earned; bins go from low to high."""

    ece: float
    adaptive_ece: float
    reliability: Sequence[ConfidenceBin]
    reliability_by_label: Mapping[str, Sequence[LabelBin]]


@dataclass(frozen=True)
class OnRepeated:
    """A judge on the rows that several people voted on, with 95% intervals."""

    log_loss: float
    log_loss_ci: Interval
    accuracy: float
    accuracy_ci: Interval


@dataclass(frozen=True, kw_only=True)
class Recalibrated(Calibration):
    """A judge with its recalibration; `gain`: by how much its log loss is better for it."""

    scale: Sequence[float]
    shift: Sequence[float]
    log_loss: float
    log_loss_ci: Interval
    gain: Difference


@dataclass(frozen=True, kw_only=True)
class JudgeFigures(Calibration):
    """One judge's figures, each ..._ci a 95% interval; log loss and KL in nats, None where nothing can be measured.

    `beats_...`: whether the interval of its gain in log loss over that rival lies above zero; None where that rival is
    absent or is the judge itself. `repeated`: None without rows that several people voted on.
    """

    log_loss: float
    log_loss_ci: Interval
    brier: float
    brier_ci: Interval
    accuracy: float
    accuracy_ci: Interval
    auc: float | None
    auc_ci: Interval | None
    flip_rate: float
    flip_rate_ci: Interval
    kl_to_teacher: float | None
    kl_to_teacher_ci: Interval | None
    beats_surface: bool | None
    beats_reference: bool | None
    beats_student: bool | None
    repeated: OnRepeated | None
    recalibrated: Recalibrated | None


@dataclass(frozen=True)
class Humans:
    """How far people agree (`metrics.human_rows`), on the `rows` with repeated votes."""

    rows: int
    intervals: str
    agreement: float
    agreement_ci: Interval
    majority: float
    majority_ci: Interval
    largest_share: float
    largest_share_ci: Interval
    entropy: float
    entropy_ci: Interval


@dataclass(frozen=True)
class Gains:
    """By how much a judge is better than a rival, above zero where it is; None for a figure that neither has."""

    log_loss: Difference
    brier: Difference
    accuracy: Difference
    auc: Difference | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that the votes tell of judges.

    `rows`, `groups`, `draws`: how many; `intervals`: "bootstrap", or "jackknife" of few prompts (`means.Means`).
    `baseline`: "surface", None where it is not judged. `humans`: None without repeated votes in two groups.
    `differences`: {"surface", "reference" and "student", as far as there: {judge: its gains over that rival}}.
    `labels`: what people could vote for.
    """

    rows: int
    groups: int
    draws: int
    intervals: str
    baseline: str | None
    teacher: str | None
    reference: str | None
    humans: Humans | None
    judges: Mapping[str, JudgeFigures]
    differences: Mapping[str, Mapping[str, Gains]]
    labels: Sequence[str] = LABELS


def compare(
    predictions: Mapping[str, Pair],
    votes: np.ndarray,
    groups: Groups,
    roles: Roles,
    recalibrations: Mapping[str, Recalibration],
    *,
    resampling: Resampling,
    bins: int,
) -> Comparison:
    """All that the votes tell of `predictions`: {judge: (logits ab, logits ba)}, each [n, labels] as `votes`.

    `recalibrations`, of some judges or none, are to be fitted on other rows than these. All judges see the same draws.
    Raises `UserError` where logits are not finite, naming the row, or all rows share one group.
    """
    rivals = _rivals(predictions, roles)
    members = number_groups(groups)
    columns = _columns(predictions, votes, roles.teacher, recalibrations)
    means = Means(columns, members, resampling)
    humans, on_repeated = _repeated(columns, votes, members, [*predictions], resampling)
    differences = {
        key: {judge: _gains(means, judge, rival) for judge in predictions if judge != rival}
        for key, rival in rivals.items()
    }
    judges = {}
    for judge, pair in predictions.items():
        judges[judge] = JudgeFigures(
            **means.figures({figure: (judge, figure) for figure in FIGURES}),
            **vars(_calibration(predict(*pair), votes, bins)),
            beats_surface=_beats(differences, "surface", judge),
            beats_reference=_beats(differences, "reference", judge),
            beats_student=_beats(differences, "student", judge),
            repeated=on_repeated.get(judge),
            recalibrated=_recalibrated(judge, pair, votes, recalibrations.get(judge), means, bins),
        )
    return Comparison(
        rows=len(votes),
        groups=int(members.max()) + 1,
        draws=resampling.draws,
        intervals=means.method,
        baseline=rivals.get("surface"),
        teacher=roles.teacher,
        reference=roles.reference,
        humans=humans,
        judges=judges,
        differences=differences,
        labels=[*LABELS[: votes.shape[1]]],
    )


def _rivals(predictions: Mapping[str, Pair], roles: Roles) -> dict[str, str]:
    """Whom all judges are compared with, as far as there."""
    for name in {*vars(roles).values()} - {None}:
        assert name in predictions, f"{name} is not among the judges: {', '.join(predictions)}"
    rivals = {
        "surface": BASELINE if BASELINE in predictions else None,
        "reference": roles.reference,
        "student": roles.student,
    }
    return {key: rival for key, rival in rivals.items() if rival is not None}


def _columns(
    predictions: Mapping[str, Pair],
    votes: np.ndarray,
    teacher: str | None,
    recalibrations: Mapping[str, Recalibration],
) -> Columns:
    """What each row adds to each judge's figures."""
    target = None if teacher is None else predict(*predictions[teacher])
    columns: Columns = {}
    for judge, (ab, ba) in predictions.items():
        columns |= {(judge, figure): row for figure, row in figure_rows(ab, ba, votes, target).items()}
        if judge in recalibrations:
            recalibrate = recalibrations[judge]
            columns[judge, RECALIBRATED] = log_loss_rows(predict(recalibrate(ab), recalibrate(ba)), votes)
    return columns


def _repeated(
    columns: Columns, votes: np.ndarray, members: np.ndarray, judges: Sequence[str], resampling: Resampling
) -> tuple[Humans | None, dict[str, OnRepeated]]:
    """People and judges on the rows that several people voted on, all on the same draws."""
    here = repeated(votes)
    if len(np.unique(members[here])) < 2:
        return None, {}
    people = human_rows(votes[here])
    there = {(HUMANS, figure): row for figure, row in people.items()}
    there |= {(judge, figure): columns[judge, figure][here] for judge in judges for figure in ON_REPEATED}
    means = Means(there, members[here], resampling)
    agreement = means.figures({figure: (HUMANS, figure) for figure in people})
    humans = Humans(rows=int(here.sum()), intervals=means.method, **agreement)
    return humans, {
        judge: OnRepeated(**means.figures({figure: (judge, figure) for figure in ON_REPEATED})) for judge in judges
    }


def _gains(means: Means, judge: str, rival: str) -> Gains:
    """By how much a judge is better than its rival in each of `COMPARED`."""
    return Gains(
        **{
            figure: _gain(means, (judge, figure), (rival, figure), sign) if (judge, figure) in means else None
            for figure, sign in COMPARED.items()
        }  # type: ignore[arg-type]  # the AUC alone may be absent
    )


def _beats(differences: Mapping[str, Mapping[str, Gains]], rival: str, judge: str) -> bool | None:
    """Whether a judge's log loss is measurably lower than a rival's; None where they are not compared."""
    gains = differences.get(rival, {}).get(judge)
    return None if gains is None else gains.log_loss.beats


def _gain(means: Means, column: tuple[str, str], rival: tuple[str, str], sign: int) -> Difference:
    """By how much `column` is better than `rival`, where `sign` says that more (1) or less (-1) is better."""
    return Difference.of(means.difference(column, rival) if sign > 0 else means.difference(rival, column))


def _recalibrated(
    judge: str, pair: Pair, votes: np.ndarray, recalibration: Recalibration | None, means: Means, bins: int
) -> Recalibrated | None:
    if recalibration is None:
        return None
    probabilities = predict(*(recalibration(logits) for logits in pair))
    return Recalibrated(
        **asdict(recalibration),
        **means.figures({"log_loss": (judge, RECALIBRATED)}),
        **vars(_calibration(probabilities, votes, bins)),
        gain=_gain(means, (judge, RECALIBRATED), (judge, "log_loss"), -1),
    )


def _calibration(probabilities: np.ndarray, votes: np.ndarray, bins: int) -> Calibration:
    by_label = reliability_by_label(probabilities, votes, bins)
    return Calibration(
        **calibration_errors(probabilities, votes, bins),
        reliability=[ConfidenceBin(*row) for row in reliability(probabilities, votes, bins).rows()],
        reliability_by_label={
            label: [LabelBin(*row) for row in by_label.filter(pl.col("label") == label).drop("label").rows()]
            for label in LABELS[: votes.shape[1]]
        },
    )
