"""Any number of judges on the same conversations: their figures, their differences, and what people reach."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from core.records import LABELS
from eval.inference import Groups
from eval.metrics import (
    FIGURES,
    Means,
    calibration,
    difference,
    figure_rows,
    human_rows,
    log_loss_rows,
    number_groups,
    predict,
    reliability,
    reliability_by_label,
    repeated,
)
from eval.recalibration import Recalibration

BASELINE = "surface"
COMPARED = {"log_loss": -1, "brier": -1, "accuracy": 1, "auc": 1}  # and the sign that makes more of it better
ON_REPEATED = ("log_loss", "accuracy")
HUMANS, RECALIBRATED = "humans", "recalibrated_log_loss"
Pair = tuple[np.ndarray, np.ndarray]
Rows = dict[tuple[str, str], np.ndarray]  # float64 [n] of (judge, figure)


def compare(
    predictions: Mapping[str, Pair],
    votes: np.ndarray,
    groups: Groups,
    *,
    teacher: str | None,
    reference: str | None,
    student: str | None = None,
    draws: int,
    bins: int,
    seed: int,
    recalibrations: Mapping[str, Recalibration],
) -> dict[str, Any]:
    """All that the votes tell of `predictions`: {judge: (logits ab, logits ba)}, each [n, 3] for the rows of `votes`.

    `teacher`, `reference` and `student` name judges among them, or None. `recalibrations`, of some judges or none, are
    to be fitted on other rows than these. All judges see the same draws. Every ..._ci is [low, high] at 95%; what
    cannot be measured is None. The dict holds nothing but JSON:

    - `rows`, `groups`, `draws`: how many; `intervals`: "bootstrap", or "jackknife" of few prompts (`metrics.Means`)
    - `baseline` ("surface", None where it is not judged), `teacher`, `reference`
    - `humans`, None without repeated votes in two groups: `rows`, `intervals`, and `agreement`, `majority`,
      `largest_share` and `entropy` (`metrics.human_rows`), each with its _ci
    - `judges`, by name:
        - `log_loss`, `brier`, `accuracy`, `auc`, `flip_rate`, `kl_to_teacher`, each with its _ci; `ece`, `adaptive_ece`
        - `beats_surface`, `beats_reference`, `beats_student`: whether the interval of its gain in log loss lies above
          zero; None where that rival is absent or is the judge itself
        - `reliability`: [{`count`, `confidence`, `accuracy`}] from low to high; `reliability_by_label`: {label:
          [{`count`, `predicted`, `observed`}]}
        - `repeated`: `log_loss` and `accuracy`, each with its _ci, on the rows of `humans`; None without them
        - `recalibrated`, None where it is not: `scale`, `shift`, `log_loss`, `log_loss_ci`, `ece`, `adaptive_ece`,
          `reliability`, `reliability_by_label`, and `gain`, the difference in log loss by which it is better for it
    - `differences`: {"surface", "reference" and "student", as far as there: {judge: {`log_loss`, `brier`, `accuracy`,
      `auc`: {`difference`, `ci`, `p`, `beats`}}}} (`metrics.difference`), above zero where the judge is better than
      the rival

    Raises `UserError` where logits are not finite, naming the row, or all rows share one group.
    """
    for name in {teacher, reference, student} - {None}:
        assert name in predictions, f"{name} is not among the judges: {', '.join(predictions)}"
    members = number_groups(groups)
    rivals = {"surface": BASELINE if BASELINE in predictions else None, "reference": reference, "student": student}
    rows = _rows(predictions, votes, teacher, recalibrations)
    means = Means(rows, members, draws, seed)
    humans, on_repeated = _repeated(rows, votes, members, list(predictions), draws, seed)
    differences: dict[str, dict[str, Any]] = {
        key: {judge: _gains(means, judge, rival) for judge in predictions if judge != rival}
        for key, rival in rivals.items()
        if rival is not None
    }
    judges: dict[str, dict[str, Any]] = {}
    for judge, pair in predictions.items():
        probabilities = predict(*pair)
        gains = {key: differences.get(key, {}).get(judge) for key in rivals}
        judges[judge] = {
            **_figures(means, judge, FIGURES),
            **calibration(probabilities, votes, bins),
            **{f"beats_{key}": gain and gain["log_loss"]["beats"] for key, gain in gains.items()},
            **_reliability(probabilities, votes, bins),
            "repeated": on_repeated.get(judge),
            "recalibrated": None,
        }
        if judge in recalibrations:
            judges[judge]["recalibrated"] = _recalibrated(judge, pair, votes, recalibrations[judge], means, bins)
    return {
        "rows": len(votes),
        "groups": int(members.max()) + 1,
        "draws": draws,
        "intervals": means.method,
        "baseline": rivals["surface"],
        "teacher": teacher,
        "reference": reference,
        "humans": humans,
        "judges": judges,
        "differences": differences,
    }


def _figures(means: Means, judge: str, figures: Iterable[str]) -> dict[str, Any]:
    return means.figures({figure: (judge, figure) for figure in figures})


def _gains(means: Means, judge: str, rival: str) -> dict[str, dict[str, Any] | None]:
    """By how much a judge is better than its rival in each of `COMPARED`; None for a figure that is not there."""
    return {
        figure: _gain(means, (judge, figure), (rival, figure), sign) if (judge, figure) in means else None
        for figure, sign in COMPARED.items()
    }


def _gain(means: Means, column: tuple[str, str], rival: tuple[str, str], sign: int) -> dict[str, Any]:
    """By how much `column` is better than `rival`, where `sign` says that more (1) or less (-1) is better."""
    return difference(means.difference(column, rival) if sign > 0 else means.difference(rival, column))


def _rows(
    predictions: Mapping[str, Pair],
    votes: np.ndarray,
    teacher: str | None,
    recalibrations: Mapping[str, Recalibration],
) -> Rows:
    target = None if teacher is None else predict(*predictions[teacher])
    rows: Rows = {}
    for judge, (ab, ba) in predictions.items():
        rows |= {(judge, figure): row for figure, row in figure_rows(ab, ba, votes, target).items()}
        if judge in recalibrations:
            recalibrate = recalibrations[judge]
            rows[judge, RECALIBRATED] = log_loss_rows(predict(recalibrate(ab), recalibrate(ba)), votes)
    return rows


def _repeated(
    rows: Rows, votes: np.ndarray, members: np.ndarray, judges: Sequence[str], draws: int, seed: int
) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """`humans`, and `repeated` of each judge, from the rows that several people voted on, all on the same draws."""
    here = repeated(votes)
    if len(np.unique(members[here])) < 2:
        return None, {}
    people = human_rows(votes[here])
    columns = {(HUMANS, figure): row for figure, row in people.items()}
    columns |= {(judge, figure): rows[judge, figure][here] for judge in judges for figure in ON_REPEATED}
    means = Means(columns, members[here], draws, seed)
    humans = {"rows": int(here.sum()), "intervals": means.method, **_figures(means, HUMANS, people)}
    return humans, {judge: _figures(means, judge, ON_REPEATED) for judge in judges}


def _recalibrated(
    judge: str, pair: Pair, votes: np.ndarray, recalibration: Recalibration, means: Means, bins: int
) -> dict[str, Any]:
    probabilities = predict(*(recalibration(logits) for logits in pair))
    loss = _figures(means, judge, [RECALIBRATED])
    return {
        **{name: list(values) for name, values in asdict(recalibration).items()},
        "log_loss": loss[RECALIBRATED],
        "log_loss_ci": loss[f"{RECALIBRATED}_ci"],
        **calibration(probabilities, votes, bins),
        **_reliability(probabilities, votes, bins),
        "gain": _gain(means, (judge, RECALIBRATED), (judge, "log_loss"), -1),
    }


def _reliability(probabilities: np.ndarray, votes: np.ndarray, bins: int) -> dict[str, Any]:
    by_label = reliability_by_label(probabilities, votes, bins)
    return {
        "reliability": reliability(probabilities, votes, bins).to_dicts(),
        "reliability_by_label": {label: by_label.filter(label=label).drop("label").to_dicts() for label in LABELS},
    }
