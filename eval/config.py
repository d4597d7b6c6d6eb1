"""What `conf/eval/`, `fidelity/` and `canaries/` hold."""

from dataclasses import dataclass
from typing import Annotated, Literal

from core.bounds import Count, NonNegative, PartialShare, Positive, Seed, at_least

CanaryMode = Literal["refuse", "warn"]


@dataclass(frozen=True)
class FidelityConfig:
    """At most `rows` to compare on, none of which trained the student, and by how much the export may differ from it
    unquantised: it fails where the whole 95% interval of a difference lies beyond its limit.

    `log_loss`: more nats a row, in the mean; `kl`: mean KL(student || export) in nats; `verdicts`: share that changes;
    `regret`: see `eval/fidelity.py`; `flip_rate`, `ece`: differences. Null: any.
    """

    rows: Count
    log_loss: NonNegative | None
    kl: NonNegative | None
    verdicts: NonNegative | None
    regret: NonNegative | None
    flip_rate: NonNegative | None
    ece: NonNegative | None


@dataclass(frozen=True)
class CanaryFactors:
    """Of the root mean square of all differences, of the largest, and of that of a label's mean; `exact` of all three
    as the exact answer has them.
    """

    rms: Positive
    largest: Positive
    shift: Positive
    exact: Positive


@dataclass(frozen=True)
class CanariesConfig:
    """`on_failure`: what becomes of an export that this machine computes differently than it was made.

    `rows` prompts, of `tokens` together, that every engine scores first (`eval/canaries/checking.py`). It may differ
    by `factors` times what `repeats` answers of the export differ by that are all right, and always by `floor`.
    """

    on_failure: CanaryMode
    rows: Count
    tokens: Count
    repeats: Annotated[int, at_least(2)]
    factors: CanaryFactors
    floor: NonNegative


@dataclass(frozen=True)
class EvalConfig:
    """`split`: which rows are scored, the locked test split or the fold that the student holds out.

    `judges`: further ones by name, each a folder or a predictions.parquet; `own`: the model family of a judge, by name.
    `bias_level`: how often an interval of a bias may miss the truth.
    """

    split: Literal["test", "fold"]
    bootstrap: Annotated[int, at_least(40)]  # one draw beyond each end of a 95% interval
    ece_bins: Count
    bias_level: PartialShare
    judges: dict[str, str]
    own: dict[str, str]
    seeds: list[Seed]
    variants: list[str]
