"""What `conf/export/` and `conf/t4/` hold."""

from dataclasses import dataclass
from typing import Annotated, Literal

from core.bounds import Count, Length, Natural, NonNegative, Positive, Share

FormatName = Literal["merged", "w8a8", "w8a16", "w4a16", "gguf"]  # the rows of `students.export.formats`


@dataclass(frozen=True)
class QuantisationConfig:
    """How weights and activations become integers."""

    smoothing: Share | None
    """w8a8: SmoothQuant's migration strength, such as 0.5; null: no smoothing."""
    group: Literal[-1, 32, 64, 128] | None
    """w8a16, w4a16: weights of a row that share a scale, as the kernel for T4s knows them; -1: the whole row; null: the
    largest of 128, 64, 32 that divides every layer's width."""


@dataclass(frozen=True)
class ExportConfig:
    """Which folds become one judge, and in which format."""

    folds: list[Natural] | None
    """Folds to average, such as [0,1,2,3,4]; null: the run's own fold."""
    average: Literal["factors", "delta", "svd"]
    """How folds are averaged, see docs/export.md."""
    compare_folds: bool
    """Compare the log loss of every fold, each average and the ensemble of all, on common validation rows."""
    format: FormatName
    """Layout and precision of the weights: a row of `students/export/formats.py`."""
    dtype: Literal["fp16", "bf16", "fp32"]
    """Type of what is not quantised; fp16 is the T4's."""
    calibration_rows: Count
    """Training conversations on which activations are measured, for fp16's range and for quantisation."""
    margin: Positive
    """How many times the largest activation must fit into fp16."""
    quantisation: QuantisationConfig
    scaling: Literal["none", "temperature", "vector"]
    """Scaling of the logits, fitted to validation rows. temperature: one scale; vector: one of a and b, one of tie, and
    a shift of tie (Guo et al. 2017); without ties, both are one."""

    @property
    def name(self) -> str:
        """Its folder's name: the format, and how folds were averaged."""
        return self.format if self.folds is None else f"{self.format}-{self.average}"


@dataclass(frozen=True)
class RateConfig:
    """TFLOPS that whole judges reach on a T4."""

    tflops: Annotated[list[Positive], Length(2)]
    """The slowest report known, and the fastest: docs/plan.md names both."""


@dataclass(frozen=True)
class T4Config:
    """The GPU that exports run on, and the work that `distill.plan` reckons with there."""

    memory_gb: Positive
    """GB of its memory that the engine may hold."""
    fp16: RateConfig
    """Rates with fp16 activations."""
    int8: RateConfig
    """Rates with int8 activations."""
    batch_tokens: Count
    """Tokens of the prompts that are processed at a time: their keys and values are held."""
    conversations: Count
    """Conversations to judge, in both orders."""
    price_per_hour: NonNegative | None
    """Price of one T4 for an hour, in any currency; null: no cost is printed."""
