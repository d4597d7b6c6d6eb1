"""All that an evaluation knows: what `metrics.json` holds, and `report.html` shows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from core.data.arena_sim import bayes_log_loss
from core.errors import UserError
from core.labels import among
from core.records import TEST, Conversation
from core.scoring import logits_by_order
from eval.biases import find_biases
from eval.bootstrap import Resampling
from eval.cascades import Cascade, measure_cascades
from eval.comparison import Comparison, JudgeFigures, Pair, Roles, compare
from eval.conclusions import Bias
from eval.config import EvalConfig
from eval.costs import Costs, known_rates, measure_costs
from eval.examples import Examples, find_examples
from eval.judges.answers import Answers
from eval.judges.candidates import STUDENT, TEACHER
from eval.judges.panel import Panel
from eval.leaderboard import Leaderboard, leaderboard
from eval.means import Difference, paired_difference
from eval.metrics import log_loss_rows, predict
from eval.recalibration import IDENTITY
from eval.reliability import BINS
from eval.set_figures import JudgeSets, judge_sets
from eval.surface_features import ResponseFeatures, response_features
from eval.truth import TRUTHS
from students.export.config import T4Config

METRICS = "metrics.json"
BAYES, REFERENCE, WITHOUT_TEACHER = "bayes", "bradley_terry", "student_no_teacher"


@dataclass(frozen=True, kw_only=True)
class JudgeResult(JudgeFigures):
    """One judge's figures and biases, and what is known of it.

    `failed`: checks of an export; `taught`: of how many of the rows its teachers, or theirs, saw the votes (0 where
    they are held out, None where nobody can tell); `alike`: how many have the same prompt in both orders (None where
    its prompts are not known); `sets`: its prediction sets, of an export that has thresholds.
    """

    biases: Mapping[str, Bias]
    failed: Sequence[str]
    taught: int | None
    alike: int | None
    sets: JudgeSets | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Comparison):
    """A comparison of all judges, and more.

    `split`: "test" or "fold", the rows that are scored. `bayes`: the entropy of the simulated true distribution, None
    for real votes; its judge is then among the others. `gain`: by how much the student is better than the one without a
    teacher, None where that is absent. `leaderboard`: None without three models. `unanswered`: why an export that is
    not among the judges gave no answer on this machine, by name. `reading`: the examples. `costs` and `cascades`: none
    of evaluations of before. `truth`: whose opinion stands for the votes, the people's or the "teacher"'s.
    """

    judges: Mapping[str, JudgeResult]
    split: str
    bayes: float | None
    gain: Difference | None
    leaderboard: Leaderboard | None
    reading: Examples
    unanswered: Mapping[str, str] = field(default_factory=dict)
    costs: Costs | None = None
    truth: str = "votes"
    cascades: Sequence[Cascade] = ()


def measure(
    panel: Panel,
    scored: Sequence[Conversation],
    truth: pl.DataFrame | None,
    config: EvalConfig,
    seed: int,
    t4: T4Config,
    coverage: float,
) -> Evaluation:
    """What the votes on `scored` tell of a panel's judges.

    `truth`: the true distribution of the votes (`probabilities`) in the order of `scored`, where it is known. Raises
    `UserError` where `eval.own` names no judge.
    """
    ids, groups = [c.id for c in scored], [c.group for c in scored]
    votes = among(np.array([c.votes for c in scored]), panel.labels)
    answers = dict(panel.answers)
    logits: dict[str, Pair] = {name: logits_by_order(of.scores, ids, panel.labels) for name, of in answers.items()}
    if unknown := set(config.own) - set(logits):
        raise UserError(f"eval.own names {sorted(unknown)}, but the judges are {', '.join(logits)}")
    if truth is not None:
        true = among(np.log(truth["probabilities"].to_numpy()), panel.labels)
        logits[BAYES], answers[BAYES] = (true, true), Answers(pl.DataFrame(), taught=0)
    resampling = Resampling(config.bootstrap, seed)

    compared = compare(
        logits,
        votes,
        groups,
        Roles(_if_there(TEACHER, logits), _if_there(REFERENCE, logits), STUDENT),
        {name: of.recalibration for name, of in answers.items() if of.recalibration is not None},
        resampling=resampling,
        bins=BINS,
    )
    features = response_features(scored)
    judges = {
        name: JudgeResult(
            **vars(compared.judges[name]),
            biases=_biases(name, of, logits[name], scored, features, config),
            failed=of.failed,
            taught=of.taught,
            alike=of.alike,
            sets=_sets(of, logits[name], scored, votes, coverage),
        )
        for name, of in answers.items()
    }
    probabilities = {name: predict(*pair) for name, pair in logits.items()}
    costs = measure_costs(panel.answers, logits, votes, groups, resampling, t4)
    return Evaluation(
        **{**vars(compared), "judges": judges},
        split="test" if scored[0].fold == TEST else "fold",
        bayes=None if truth is None else bayes_log_loss(truth),
        gain=_gain(probabilities, votes, groups, resampling),
        leaderboard=leaderboard(scored, votes, probabilities, resampling),
        reading=find_examples(ids, groups, votes, probabilities),
        unanswered=panel.unanswered,
        truth=config.truth,
        costs=costs,
        cascades=measure_cascades(answers, logits, costs.judges, votes, ids, groups, resampling),
    )


def outdated(folder: Path, t4: T4Config, coverage: float) -> bool:
    """Whether the evaluation in `folder`, if there is one, lacks an export's answers, or is about other T4s or sets."""
    if not (folder / METRICS).exists():
        return False
    found = json.loads((folder / METRICS).read_text())
    asked = {sets["asked"] for judge in found["judges"].values() if (sets := judge.get("sets"))}
    costs = found.get("costs")
    return bool(unanswered(folder) or asked - {coverage} or (costs is not None and costs["t4"] != known_rates(t4)))


def unanswered(folder: Path) -> list[str]:
    """The exports that gave no answer when the evaluation in `folder` was made, if it was."""
    path = folder / METRICS
    return [*json.loads(path.read_text()).get("unanswered", {})] if path.exists() else []


def _if_there(judge: str, judges: Mapping[str, Pair]) -> str | None:
    return judge if judge in judges else None


def _sets(
    answers: Answers, logits: Pair, scored: Sequence[Conversation], votes: np.ndarray, coverage: float
) -> JudgeSets | None:
    """The prediction sets of a judge that has thresholds beside it."""
    if answers.thresholds is None:
        return None
    truncated = _truncated(answers.scores, [c.id for c in scored])
    recalibration = answers.recalibration or IDENTITY
    return judge_sets(answers.thresholds, recalibration, logits, scored, votes, coverage, truncated)


def _biases(
    judge: str,
    answers: Answers,
    logits: Pair,
    scored: Sequence[Conversation],
    features: ResponseFeatures,
    config: EvalConfig,
) -> dict[str, Bias]:
    """A judge's biases by name."""
    own, cut = config.own.get(judge), _truncated(answers.scores, [c.id for c in scored])
    truth = TRUTHS[config.truth]
    found = find_biases(
        scored, *logits, level=config.bias_level, own=own, truncated=cut, features=features, truth=truth
    )
    return {bias.name: bias for bias in found}


def _truncated(scores: pl.DataFrame, ids: Sequence[str]) -> np.ndarray | None:
    """Whether a judge's prompt was cut in either order: bool [ids]; None where it has no prompt, or does not tell."""
    if "truncated" not in scores.columns or scores["truncated"].null_count():
        return None
    cut = scores.group_by("id").agg(pl.col("truncated").any())
    return pl.DataFrame({"id": ids}).join(cut, on="id", how="left", maintain_order="left")["truncated"].to_numpy()


def _gain(
    probabilities: Mapping[str, np.ndarray], votes: np.ndarray, groups: Sequence[str], resampling: Resampling
) -> Difference | None:
    """By how much a teacher lowers the student's log loss."""
    if WITHOUT_TEACHER not in probabilities:
        return None
    without, student = (log_loss_rows(probabilities[name], votes) for name in (WITHOUT_TEACHER, STUDENT))
    return paired_difference(without, student, groups, resampling)
