"""What `conf/export/` and `conf/t4/` hold."""

from dataclasses import dataclass
from typing import Literal

from core.bounds import Count, Natural, NonNegative, Positive, Share

FormatName = Literal["merged", "w8a8", "w8a16", "w4a16", "gguf"]  # the rows of `students.export.formats`


@dataclass(frozen=True)
class QuantisationConfig:
    """`smoothing`: SmoothQuant's migration strength, for w8a8; null: none. `group`: how many weights of a row share a
    scale in w8a16 and w4a16, those that the kernel for T4s knows, -1: all of a row; null: the largest of 128, 64, 32
    that divides every layer's width.
    """

    smoothing: Share | None
    group: Literal[-1, 32, 64, 128] | None


@dataclass(frozen=True)
class ExportConfig:
    """`folds`: null for the run's own fold, else those to average by `average`; `compare_folds`: whether to tell what
    that costs.

    `margin`: how many times the largest activation must fit into fp16, found on `calibration_rows` training
    conversations, which quantisation sees, too. `scaling`: of the export's logits, fitted to validation rows.
    """

    folds: list[Natural] | None
    average: Literal["factors", "delta", "svd"]
    compare_folds: bool
    format: FormatName
    dtype: Literal["fp16", "bf16", "fp32"]
    calibration_rows: Count
    margin: Positive
    quantisation: QuantisationConfig
    scaling: Literal["none", "temperature", "vector"]

    @property
    def name(self) -> str:
        """Its folder's name: the format, and how folds were averaged."""
        return self.format if self.folds is None else f"{self.format}-{self.average}"


@dataclass(frozen=True)
class RateConfig:
    """TFLOPS that whole judges reach in the slowest and the fastest report known; `sources` names both."""

    low: Positive
    high: Positive
    sources: str


@dataclass(frozen=True)
class T4Config:
    """The GPU that the export runs on. `memory_gb`: what the engine may hold of its memory. `fp16`: with fp16
    activations, `int8`: with int8 ones. `batch_tokens`: prompts that are processed at a time.
    """

    memory_gb: Positive
    fp16: RateConfig
    int8: RateConfig
    batch_tokens: Count
    conversations: Count
    price_per_hour: NonNegative | None
