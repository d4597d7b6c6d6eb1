"""How long an export judges on a T4, by the rates that whole judges were reported to reach (docs/plan.md)."""

from core.models.flops import Lengths, scoring_flops
from core.models.memory import inference_memory
from core.models.shapes import Shape
from students.export.config import T4Config
from students.export.formats import Format

Interval = tuple[float, float]  # from, to


def t4_hours(t4: T4Config, row: Format, flops: float) -> Interval:
    """Hours of one T4 with an export in a format: int8 activations have cores of their own."""
    rate = t4.int8 if row.int8_activations else t4.fp16
    low, high = rate.tflops
    return flops / (high * 1e12) / 3600, flops / (low * 1e12) / 3600


def hours_of_work(t4: T4Config, row: Format, shape: Shape, lengths: Lengths, prompts: float) -> Interval | None:
    """Hours of one T4 for `t4.conversations` of so many `prompts` each; None where the model does not fit."""
    if inference_memory(shape, row.weight_bytes, 1, t4.batch_tokens) > t4.memory_gb:
        return None
    return t4_hours(t4, row, t4.conversations * prompts * scoring_flops(shape, lengths))
