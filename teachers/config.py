"""What `conf/teacher/` holds."""

from dataclasses import dataclass
from typing import Literal

from core.bounds import Count, Natural, NonNegative, Positive
from core.errors import UserError


@dataclass(frozen=True)
class MixtureConfig:
    """Several finished teachers as one."""

    teachers: list[str]
    """Other teachers by name, such as [llama70b, qwen72b]."""
    weights: list[Positive] | None
    """Weight of each, such as [2, 1]; null: all alike."""
    space: Literal["logits", "probabilities"]
    """What is averaged: the teachers' logits, or their probabilities."""
    temperature_scaling: bool
    """Divide each teacher's logits by the temperature that fits the votes of the other folds best."""


@dataclass(frozen=True)
class StoredConfig:
    """Opinions that somebody has stored: a table with a row for each conversation, or for each response."""

    file: str | None
    """The table, in a format of docs/data.md; null: the scores of the responses in the prepared data."""
    learned_from: str
    """What gave them learned from: none of the conversations; unknown, which marks all that descends from it; or the
    column with the fold of each row: its judge learned from the other folds' rows."""


@dataclass(frozen=True)
class TeacherConfig:
    """Who gives the soft targets, and which of them a student takes."""

    name: str | None
    """Name of the teacher; logits/<name> holds what it said."""
    kind: Literal["folds", "model", "reward", "mixture", "stored"]
    """folds: fine-tuned fold teachers below `path`; model: one ready-made `model` that saw none of the rows; reward: it
    scores each response alone; mixture: other teachers' stored logits; stored: opinions in a file."""
    path: str | None
    """Folder of the fold teachers; null: <paths.root>/teachers/<name>."""
    model: str | None
    """Of kind model or reward: hub id, local folder or pip:PACKAGE."""
    folds: list[Natural]
    """Folds of the teachers that score, of kind folds; empty for the other kinds."""
    rows: Literal["out_of_fold", "in_fold"]
    """out_of_fold: each row is scored by the teachers that did not train on it; in_fold: by all, and a student of fold
    k learns from teacher k, as the LMSYS winner's did."""
    max_entropy: NonNegative | None
    """In nats: rows without votes whose teacher is less sure than this are not distilled; null: all are."""
    rows_per_part: Count
    """Rows in a part of the store: what a crash can cost."""
    same_prompt: bool
    """Refuse targets of a teacher that was shown another template than the student."""
    merge: bool
    """Fold teachers: merge the adapter into the base; false: vLLM serves it beside the base's own files."""
    reward_l2: NonNegative
    """Kind reward, and scores of kind stored: penalty on the Bradley-Terry weights."""
    price_per_hour: NonNegative | None
    """Price of the machine for an hour, in any currency, for the cost that the progress bar shows; null: none."""
    mixture: MixtureConfig
    method: Literal["classify", "label_tokens"]
    """classify reads a score head; label_tokens the log-probabilities of `prompt.label_tokens` as the next token."""
    stored: StoredConfig | None = None

    @property
    def group_of_stored(self) -> StoredConfig:
        """Raises `UserError` where the kind was set by hand, and its group is not there."""
        if self.stored is None:
            raise UserError("teacher.kind=stored: its keys come with the choice teacher=stored")
        return self.stored
