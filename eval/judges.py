"""The judges of one experiment, each as predictions for the same held-out conversations in both orders."""

import logging
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from distill import runs
from distill.config import Config, ScorerConfig
from distill.door import variant
from distill.records import Conversation
from distill.scoring import SCORES, mean_logits, score_conversations
from distill.store import read_logits
from eval import baselines
from eval.seeds import STUDENT
from students.trained import TrainedJudge, open_trained
from teachers.scorers import open_scorer

log = logging.getLogger(__name__)
NO_TEACHER = "loss=votes"


class Judges:
    """Predictions by judge, and for each the artefact that they come from."""

    def __init__(self, config: Config, held_out: Sequence[Conversation]):
        self.config, self.held_out = config, held_out
        self.predictions: dict[str, pl.DataFrame] = {}
        self.artefacts: dict[str, Path] = {}

    def add_baselines(self, training: Sequence[Conversation]) -> None:
        """The vote frequencies of the other folds, and a logistic regression on surface features."""
        self.predictions["prior"] = baselines.prior(training, self.held_out)
        self.predictions["surface"] = baselines.surface(training, self.held_out)

    def add_teacher(self) -> None:
        """What the teacher said of the held-out rows, from its store; only rows it was not trained on."""
        folder = self.config.root / "logits" / str(self.config.teacher.name)
        if self._absent("teacher", folder, "make teacher-logits"):
            return
        ids = [c.id for c in self.held_out]
        logits = read_logits(folder, "make teacher-logits").filter(pl.col("id").is_in(ids), ~pl.col("in_sample"))
        if missing := set(ids) - set(logits["id"]):
            log.warning("teacher left out: %s has no out-of-fold logits for %d held-out rows", folder, len(missing))
            return
        self.predictions["teacher"] = (
            logits.group_by("id", "order", maintain_order=True)
            .agg(mean_logits(), pl.col("prompt_tokens", "truncated").first())
            .cast(SCORES)
        )
        self.artefacts["teacher"] = folder

    def add_student(self, name: str, run: str) -> None:
        """A trained student, by its run name."""
        folder = self.config.root / "students" / run / f"fold={self.config.fold}"
        if not self._absent(name, folder, f"make student (run {run})"):
            judge = open_trained(folder, self.config.root, "make student")
            self._score(name, folder, judge, judge.merged(self.config.root), self.config.eval.student)

    def add_export(self, name: str) -> None:
        """The exported student, through the engine it is meant for."""
        folder = self.config.root / "exports" / self.config.run / "w8a8"
        if not self._absent(name, folder, "make export"):
            student = self.config.root / "students" / self.config.run / f"fold={self.config.fold}"
            judge = open_trained(student, self.config.root, "make student")
            parents = runs.parent_contents([student], self.config.root)
            if runs.read_manifest(folder).parents != parents:
                raise ValueError(
                    f"{folder} was exported from another student than {student}: export again with overwrite=true"
                )
            self._score(name, folder, judge, folder, self.config.eval.exported)

    def _score(self, name: str, artefact: Path, judge: TrainedJudge, model: Path, scorer_config: ScorerConfig) -> None:
        with open_scorer(model, scorer_config, judge.max_tokens) as scorer:
            self.predictions[name] = score_conversations(scorer, judge.renderer, self.held_out)
        self.artefacts[name] = artefact

    def _absent(self, name: str, folder: Path, remedy: str) -> bool:
        absent = not (folder / runs.MANIFEST).exists()
        if absent:
            log.warning("%s left out: %s is not there (%s)", name, folder, remedy)
        return absent


def judge_all(config: Config, held_out: Sequence[Conversation], training: Sequence[Conversation]) -> Judges:
    """Every judge that the experiment has artefacts for. Raises `ValueError` where the student itself is missing."""
    judges = Judges(config, held_out)
    judges.add_baselines(training)
    judges.add_teacher()
    judges.add_student("student_no_teacher", variant(config.run, NO_TEACHER))
    judges.add_student("student", config.run)
    if "student" not in judges.predictions:
        raise ValueError(
            f"{config.root / 'students' / config.run} has no finished fold={config.fold}: train it first (make student)"
        )
    judges.add_export("student_w8a8")
    return judges


def judge_seeds(config: Config, held_out: Sequence[Conversation]) -> dict[str, list[pl.DataFrame]]:
    """Predictions of the student and of each of `eval.variants`, by name, for each of `eval.seeds`."""
    found: dict[str, list[pl.DataFrame]] = {name: [] for name in (STUDENT, *config.eval.variants)}
    for seed in config.eval.seeds:
        run = config.run if seed == config.seed else variant(config.run, f"seed={seed}")
        judges = Judges(config, held_out)
        for name, frames in found.items():
            overrides = [] if name == STUDENT else name.split(",")
            judges.add_student(name, variant(run, *overrides))
            if name not in judges.predictions:
                raise ValueError(
                    f"eval.seeds={config.eval.seeds}: {name} of seed {seed} is missing; train it first: "
                    f"python -m distill.student +exp={config.name} {' '.join([f'seed={seed}', *overrides])}"
                )
            frames.append(judges.predictions[name])
    return found
