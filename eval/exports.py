"""An export beside its student, on conversations that trained neither: what it lost, and the temperature it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.artefacts.identity import identity_hash
from core.prompts import Renderer
from core.provenance import Learned
from core.records import Conversation
from core.scoring import logits_by_order
from eval.averages import Averages, compare_averages
from eval.bootstrap import Resampling
from eval.config import FidelityConfig
from eval.fidelity import Fidelity, Logits, fidelity
from eval.judges.predictions import predictions
from eval.recalibration import Kind, Recalibration, fit_recalibration
from teachers.scorers.config import ScorerConfig


@dataclass(frozen=True)
class ReadModel:
    """A model's folder with its content hash, the prompts that it was trained on, and the scorer that reads it.

    What it answers is kept below `root`.
    """

    folder: Path
    content: str
    renderer: Renderer
    scorer: ScorerConfig
    root: Path

    def logits(self, conversations: Sequence[Conversation]) -> Logits:
        """Of both orders, each [n, 3]."""
        found = predictions(self.folder, self.content, self.renderer, self.scorer, conversations, self.root)
        return logits_by_order(found.scores, [c.id for c in conversations])


def compare_export(
    student: ReadModel,
    export: ReadModel,
    conversations: Sequence[Conversation],
    learned: Learned,
    limits: FidelityConfig,
    *,
    resampling: Resampling,
    bins: int,
) -> Fidelity:
    """What an export lost on at most `limits.rows` of the conversations; `learned`: what its student learned from."""
    compared = sample(conversations, limits.rows, resampling.seed)
    return fidelity(
        student.logits(compared),
        export.logits(compared),
        [c.id for c in compared],
        *votes_and_groups(compared),
        limits,
        resampling=resampling,
        bins=bins,
        taught=sum(c.fingerprint() in learned.through_teachers for c in compared),
    )


def compare_folds(
    models: Mapping[str, ReadModel],
    folds: Sequence[str],
    conversations: Sequence[Conversation],
    resampling: Resampling,
) -> Averages:
    """What averaging costs: the `models` are folds, named by `folds`, and averages of these."""
    logits = {name: model.logits(conversations) for name, model in models.items()}
    return compare_averages(logits, folds, *votes_and_groups(conversations), resampling)


def recalibrate(export: ReadModel, validation: Sequence[Conversation], kind: Kind) -> Recalibration:
    """The recalibration of an export's own logits of validation conversations."""
    return fit_recalibration(np.mean(export.logits(validation), axis=0), votes_and_groups(validation)[0], kind)


def sample(conversations: Sequence[Conversation], most: int, seed: int) -> list[Conversation]:
    """At most so many of them, in their order, drawn by a hash of their ids: of all sources, of all lengths."""
    drawn = {c.id for c in sorted(conversations, key=lambda c: identity_hash([seed, c.id]))[:most]}
    return [c for c in conversations if c.id in drawn]


def votes_and_groups(conversations: Sequence[Conversation]) -> tuple[np.ndarray, list[str]]:
    """Votes [n, 3], and the prompt group of each."""
    return np.array([c.votes for c in conversations]), [c.group for c in conversations]
