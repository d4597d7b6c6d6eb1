"""What `conf/eval/`, `fidelity/` and `canaries/` hold."""

from dataclasses import dataclass
from typing import Annotated, Literal

from core.bounds import Count, NonNegative, PartialShare, Positive, Seed, at_least

CanaryMode = Literal["refuse", "warn"]


@dataclass(frozen=True)
class FidelityConfig:
    """By how much an export may differ from its student unquantised, on rows that did not train the student.

    An export fails where the whole 95% interval of a difference lies beyond its limit. A limit of null allows any.
    """

    rows: Count
    """How many rows to compare on, at most."""
    log_loss: NonNegative | None
    """Limit of the rise in mean log loss, in nats."""
    kl: NonNegative | None
    """Limit of the mean KL(student || export), in nats."""
    verdicts: NonNegative | None
    """Limit of the share of conversations whose most likely label changes."""
    regret: NonNegative | None
    """Limit of the mean probability, by the student, that following the export's verdicts gives away; near ties do not
    inflate it."""
    flip_rate: NonNegative | None
    """Limit of the change, either way, in the share of verdicts that depend on the order."""
    ece: NonNegative | None
    """Limit of the rise in adaptive expected calibration error (ECE)."""


@dataclass(frozen=True)
class CanaryFactors:
    """How far canary logits may be off, as multiples of the scatter of the export's own repeated answers."""

    rms: Positive
    """Times the root mean square of all differences."""
    largest: Positive
    """Times the largest difference."""
    shift: Positive
    """Times the difference in a label's mean."""
    exact: Positive
    """Times what the exact answer differs by, in each of the three, where that is more."""


@dataclass(frozen=True)
class CanariesConfig:
    """Prompts that every engine scores before it judges (`eval/canaries/checking.py`, docs/export.md)."""

    on_failure: CanaryMode
    """For an export that this machine computes differently than it was made. refuse: stop; warn: continue and mark the
    output."""
    rows: Count
    """How many prompts, at most."""
    tokens: Count
    """How many tokens all prompts together have, at most."""
    repeats: Annotated[int, at_least(2)]
    """Answers, all of them right, whose scatter stands for that of engines that are right."""
    factors: CanaryFactors
    floor: NonNegative
    """Difference of a logit that is always allowed."""


@dataclass(frozen=True)
class EvalConfig:
    """Which judges are measured, on which rows, and how."""

    split: Literal["test", "fold"]
    """Rows to score. test: the locked test split; fold: the fold that the student leaves out."""
    truth: Literal["votes", "teacher"]
    """What judges are measured by, and baselines fitted to. votes: people's; teacher: its probabilities, whose
    cross-entropy is then what the tables call log loss."""
    bootstrap: Annotated[int, at_least(40)]  # one draw beyond each end of a 95% interval
    """Bootstrap draws of conversations behind every interval."""
    bias_level: PartialShare
    """How often the interval of a bias may miss the truth."""
    judges: dict[str, str]
    """Further judges by name, each a folder or predictions.parquet: +eval.judges.other=artifacts/exports/other/w8a8"""
    own: dict[str, str]
    """Model family of a judge, or a model of it, by the judge's name, for self-enhancement: +eval.own.teacher=llama"""
    seeds: list[Seed]
    """Training seeds over which the student is compared with its variants, too; empty for none."""
    variants: list[str]
    """Overrides that made the variants; several overrides of one variant are joined by commas."""
