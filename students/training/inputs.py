"""What a training learns from: its conversations, a teacher's soft targets, and both rendered as examples."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core import provenance
from core.artefacts.manifest import read_manifest
from core.data.table import load_conversations
from core.errors import UserError
from core.labels import Labels, check_knows, labels_in
from core.prompts import PromptConfig, Renderer
from core.records import Conversation
from core.store.targets import Targets, soft_targets
from students.training.config import RowWeightsConfig
from students.training.data import Example, make_examples, split
from students.training.recipe import SoftTargets, TrainingRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Conversations to train on and to validate with, and the teacher's logits for both; None: the votes alone.

    `labels`: what people could vote for.
    """

    training: list[Conversation]
    validation: list[Conversation]
    targets: Targets | None
    labels: Labels

    def learned(self, base: Path) -> provenance.Learned:
        """What a judge that starts from `base` learned from in the end, through all of its teachers."""
        own = provenance.Learned.of([*self.training, *self.validation]) | provenance.behind_model(base)
        return own if self.targets is None else own | self.targets.learned

    def examples(self, renderer: Renderer, weights: RowWeightsConfig) -> tuple[list[Example], list[Example]]:
        """(training, validation) as token ids with their targets; `weights` says what each counts."""
        logits = None if self.targets is None else self.targets.logits
        training, validation = (
            make_examples(part, renderer.render(part), logits, weights, self.labels)
            for part in (self.training, self.validation)
        )
        return training, validation


def load_inputs(run: TrainingRun) -> Inputs:
    """Read and split the conversations of `run`. Training conversations that have no target are left out."""
    found, labels = load_conversations(run.data)[: run.limit], labels_in(run.data)
    training, validation = split(found, run.fold, run.recipe.train.validation_share)
    if (store := run.soft_targets) is not None:
        asked, settings = [*training, *validation], (run.fold, store.rows, store.max_entropy, labels)
        targets = soft_targets(store.folder, asked, *settings)
        check_knows(store.folder, labels_in(store.folder), labels)
        return Inputs([c for c in training if c.id not in targets.left_out], validation, targets, labels)
    if unvoted := sum(c.votes is None for c in training):
        log.info("%d of %d conversations without votes are left out: nothing to learn from", unvoted, len(training))
    return Inputs([c for c in training if c.votes], validation, None, labels)


def check_prompt(kind: str, prompt: PromptConfig) -> None:
    """Refuse a prompt that shows other responses than a judge of this kind reads."""
    if kind == "pointwise" and not prompt.pointwise:
        raise UserError(
            "model.kind=pointwise reads one response, and prompt.template shows both: add prompt=pointwise, or give a "
            "template with answer_b=null"
        )
    if kind == "pairwise" and prompt.pointwise:
        raise UserError(
            "prompt.template.answer_b=null shows one response, and model.kind=pairwise reads both: add "
            "model.kind=pointwise, or give a template that shows both"
        )


def check_template(store: SoftTargets, own: Mapping[str, str]) -> None:
    """Refuse targets of a teacher that was shown another template than the run's `own` (hashes of its renderer), unless
    `teacher.same_prompt` is off. A pairwise teacher and a pointwise student cannot have the same.
    """
    theirs = read_manifest(store.folder, "teacher").prompt
    alike = theirs.get("kind") == own.get("kind")
    if store.same_prompt and alike and theirs["template"] != own["template"]:
        raise UserError(
            f"{store.folder} was made with prompt template {theirs['template']}, this run renders {own['template']}: "
            "use the teacher's prompt.template, score again with the new one, "
            "or allow the difference with teacher.same_prompt=false"
        )
