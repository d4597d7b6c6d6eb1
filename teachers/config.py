"""What `conf/teacher/` holds."""

from dataclasses import dataclass
from typing import Literal

from core.bounds import Count, Natural, NonNegative, Positive


@dataclass(frozen=True)
class MixtureConfig:
    """Several finished teachers as one, by name. `weights`: null for equal ones."""

    teachers: list[str]
    weights: list[Positive] | None
    space: Literal["logits", "probabilities"]
    temperature_scaling: bool


@dataclass(frozen=True)
class TeacherConfig:
    """Who gives the soft targets, and which of them a student takes.

    `folds`: fine-tuned fold teachers below `path`; `model`: one ready-made `model` that saw none of the rows; `reward`:
    a reward model, which scores each response alone; `mixture`: other teachers' stored logits.

    `method`: `classify` reads a score head; `label_tokens` the log-probabilities of `labels` as the next token.
    """

    name: str | None
    kind: Literal["folds", "model", "reward", "mixture"]
    path: str | None
    model: str | None
    folds: list[Natural]
    rows: Literal["out_of_fold", "in_fold"]
    max_entropy: NonNegative | None
    rows_per_part: Count
    same_prompt: bool
    merge: bool
    reward_l2: NonNegative
    price_per_hour: NonNegative | None
    mixture: MixtureConfig
    method: Literal["classify", "label_tokens"]
    labels: list[str]

    @property
    def label_tokens(self) -> list[str] | None:
        """The next tokens that a language model is asked for; None where a score head is read."""
        return self.labels if self.method == "label_tokens" else None
