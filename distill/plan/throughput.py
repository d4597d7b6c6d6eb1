"""How long a GPU computes: floating-point operations of scoring and training, and what moves between GPUs.

    scoring     2 x matrices x tokens, a multiplication and an addition for each weight (Kaplan et al. 2020, arXiv
                2001.08361, section 2.1; embeddings are looked up), and attention: 2 x 2 x heads x head size for each
                pair of a token with one that it sees, s^2 / 2 pairs for s tokens, fewer within a sliding window
    LoRA        backward takes the gradients of activations alone, 2 x matrices; the adapters 6 in all. Flash
                attention's backward 2.5 of its forward (Dao 2023, arXiv 2307.08691: five products in place of two)
    full        backward 4 x matrices
    checkpoints another forward pass

    seconds = FLOPs / (peak x utilisation x GPUs) + communication

Communication is not overlapped (the engine sets overlap_comm=false): ZeRO-0, 1, 2 reduce and gather the trained
parameters once a step; ZeRO-3 gathers all parameters in each pass over a micro-batch (Rajbhandari et al. 2020, arXiv
1910.02054, section 7).
"""

import math
from dataclasses import dataclass

from core.models.memory import GB, Method, MicroBatch, Sharding
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


def training_flops(shape: Shape, method: Method, lengths: Lengths, checkpointing: bool, eager: bool) -> float:
    """FLOPs of one prompt, forward and backward."""
    again = 1 if checkpointing else 0
    matrices = 2 * shape.matrices * lengths.mean * (1 + (2 if method == "full" else 1) + again)
    adapters = 0.0 if method == "full" else 2 * shape.adapters * lengths.mean * (3 + again)
    attention = attention_flops(shape, lengths)
    if eager:  # all pairs, the masked ones too; two products forward, four backward
        return matrices + adapters + 2 * attention * (1 + 2 + again)
    return matrices + adapters + attention * (1 + 2.5 + again)


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


def step_traffic(shape: Shape, method: Method, sharding: Sharding, batch: MicroBatch, micro_batches: float) -> float:
    """GB that each GPU sends in one optimiser step of `micro_batches` on each GPU, by ring algorithms."""
    share = (sharding.gpus - 1) / sharding.gpus / GB
    trained = shape.trained(method) * (batch.bytes if method == "full" else 4)
    if sharding.zero < 3:
        return 2 * trained * share
    passes = 3 if batch.checkpointing else 2
    return (passes * shape.parameters * batch.bytes + trained) * micro_batches * share
