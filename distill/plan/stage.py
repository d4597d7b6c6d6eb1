"""A block of the plan; its hours and its cost are intervals, whose ends are equal where one rate is assumed."""

from collections.abc import Iterable
from dataclasses import dataclass

from distill.plan.config import PlanConfig

Interval = tuple[float, float]  # from, to


@dataclass(frozen=True)
class Stage:
    """One block of the plan. `hours` (of all its GPUs together) and `cost` are None where they are not known.

    `lines`: (name, value). `memory`: a table of GB on each GPU, its header first.
    """

    title: str
    lines: list[tuple[str, str]]
    hours: Interval | None = None
    cost: Interval | None = None
    memory: list[list[str]] | None = None


def total(intervals: Iterable[Interval | None]) -> Interval:
    """The sum of those that are known."""
    known = [interval for interval in intervals if interval is not None]
    return sum(low for low, _ in known), sum(high for _, high in known)


def as_text(interval: Interval, digits: int = 1) -> str:
    """`1.0 to 2.0`, or one number where both ends round to the same."""
    ends = dict.fromkeys(f"{end:,.{digits}f}" for end in interval)
    return " to ".join(ends)


def cost_of(plan: PlanConfig, hours: float) -> Interval | None:
    """The cost of `hours` of all the plan's GPUs, None where no price is given."""
    if plan.price_per_gpu_hour is None:
        return None
    return (hours * plan.gpus * plan.price_per_gpu_hour,) * 2
