"""How many floating-point operations a prompt takes to be scored, and how prompts' lengths enter.

2 x matrices x tokens, a multiplication and an addition for each weight (Kaplan et al. 2020, arXiv 2001.08361, section
2.1; embeddings are looked up), and attention: 2 x 2 x heads x head size for each pair of a token with one that it
sees, s^2 / 2 pairs for s tokens, fewer within a sliding window
"""

import math
from dataclasses import dataclass

from core.models.shapes import Shape


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompts: their `mean`, and the mean of their squares, which attention's cost follows."""

    mean: float
    mean_square: float

    @classmethod
    def equal(cls, tokens: float) -> "Lengths":
        """All prompts of `tokens`."""
        return cls(tokens, tokens**2)

    @classmethod
    def cut(cls, mean: float, most: int) -> "Lengths":
        """Prompts of exponentially distributed lengths (many short, few very long) with that mean, cut at `most`."""
        beyond = math.exp(-most / mean)
        return cls(mean * (1 - beyond), 2 * mean**2 * (1 - beyond * (1 + most / mean)))


def scoring_flops(shape: Shape, lengths: Lengths, cached: float = 0.0) -> float:
    """FLOPs of one prompt, of whose tokens the share `cached` comes from the prefix cache."""
    return 2 * shape.matrices * lengths.mean * (1 - cached) + attention_flops(shape, lengths) * (1 - cached**2)


def attention_flops(shape: Shape, lengths: Lengths) -> float:
    """FLOPs of scores and sums over the pairs of a token and one that it sees, forward, in all layers.

    Windows are taken at the root mean square length.
    """
    pairs = lengths.mean_square / 2
    window = shape.window if shape.windowed else None
    seen = shape.layers * pairs
    if window and window**2 < lengths.mean_square:
        seen -= shape.windowed * (pairs - window * lengths.mean_square**0.5 + window**2 / 2)
    return 4 * shape.heads * shape.head_dim * seen
