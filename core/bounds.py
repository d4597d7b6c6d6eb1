"""Numbers with their bounds, as types for the keys of `core/config.py`: `epochs: Count`, `warmup: Share`.

Each is a plain type annotated with its bounds. NaN and infinities are refused everywhere.
"""

import math
import sys
from dataclasses import dataclass
from typing import Annotated, Any

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, without an end that is open."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def allows(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)

    @property
    def advice(self) -> str:
        lower = f"more than {self.low}" if self.open_low else f"{self.low} or more"
        if self.high == math.inf:
            return lower
        if not self.open_low and not self.open_high:
            return f"{self.low} to {self.high}"
        return f"{lower}, {'less than' if self.open_high else 'at most'} {self.high}"


@dataclass(frozen=True)
class Length:
    """Lists of so many items."""

    items: int

    def allows(self, values: list[Any]) -> bool:
        return len(values) == self.items

    @property
    def advice(self) -> str:
        return f"a list of {self.items} numbers"


@dataclass(frozen=True)
class Sum:
    """Lists of numbers that sum to `total`."""

    total: float

    def allows(self, values: list[float]) -> bool:
        return abs(math.fsum(values) - self.total) <= SUM_TOLERANCE

    @property
    def advice(self) -> str:
        return f"numbers that sum to {self.total}"


Bound = Range | Length | Sum


def at_least(low: float) -> Range:
    return Range(low)


def above(low: float) -> Range:
    return Range(low, open_low=True)


def between(low: float, high: float) -> Range:
    return Range(low, high)


def is_finite(number: float) -> bool:
    """Whether it is neither NaN nor infinite, nor a whole number beyond all floats."""
    return -sys.float_info.max <= number <= sys.float_info.max


Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Seed = Annotated[int, between(0, 2**32 - 1)]  # what numpy and scikit-learn take
Port = Annotated[int, between(0, 2**16 - 1)]

Positive = Annotated[float, above(0)]
NonNegative = Annotated[float, at_least(0)]
Share = Annotated[float, between(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, open_low=True)]
ShareBelowOne = Annotated[float, Range(0, 1, open_high=True)]
PartialShare = Annotated[float, Range(0, 1, open_low=True, open_high=True)]

Betas = Annotated[list[ShareBelowOne], Length(2)]
Probabilities = Annotated[list[PositiveShare], Length(3), Sum(1)]  # probabilities in the order of `LABELS`
