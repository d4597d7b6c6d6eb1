"""The export on T4s: which formats fit, and how long it judges `conversations` in both orders."""

from core.models.flops import scoring_flops
from core.models.memory import GB, inference_memory
from core.models.shapes import Shape
from core.records import ORDERS
from distill.plan.stage import Stage, as_text
from distill.plan.work import Work
from students.export.config import RateConfig, T4Config
from students.export.formats import FORMATS
from students.export.t4.hours import t4_hours


def t4_stage(base: str, shape: Shape, work: Work, t4: T4Config, exported: str) -> Stage:
    """The plan of judging with an export; `exported` is its format."""
    rows = t4.conversations * len(ORDERS)
    hours = {name: t4_hours(t4, row, rows * scoring_flops(shape, work.lengths)) for name, row in FORMATS.items()}
    memory = {name: inference_memory(shape, row.weight_bytes, 1, t4.batch_tokens) for name, row in FORMATS.items()}
    fits = {name: gb <= t4.memory_gb for name, gb in memory.items()}

    def format_line(name: str) -> str:
        low, high = hours[name]
        used = f"{memory[name]:.1f} of {t4.memory_gb:g} GB"
        if not fits[name]:
            return f"{used}: too much"
        return f"{used}: {as_text((low, high))} h on one T4, {as_text((low / 2, high / 2))} h on two"

    billions = shape.parameters / GB  # times the bytes of an element: GB
    lines = [
        ("rows", f"{rows:,} ({t4.conversations:,} conversations, both orders) of {work.lengths.mean:.0f} tokens"),
        *((f"{name}, exported" if name == exported else name, format_line(name)) for name in FORMATS),
        (
            "disk",
            f"{4 * billions:.0f} GB merged in fp32, {2 * billions:.0f} in fp16, again where it is rescaled, "
            "and the format",
        ),
        ("rate", rate_text(t4.fp16)),
        *((f"rate of {name}", rate_text(t4.int8)) for name, row in FORMATS.items() if row.int8_activations),
    ]
    title = f"Judging on T4s, {base}"
    if not fits[exported]:
        return Stage(title, lines)
    low, high = hours[exported]
    cost = None if t4.price_per_hour is None else (low * t4.price_per_hour, high * t4.price_per_hour)
    return Stage(title, lines, (low, high), cost)


def rate_text(rate: RateConfig) -> str:
    """The lower and the upper end, and where their sources are named."""
    low, high = rate.tflops
    return f"{low:g} to {high:g} TFLOPS (reports: docs/plan.md)"
