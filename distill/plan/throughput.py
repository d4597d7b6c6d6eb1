"""How long a GPU computes: floating-point operations of training, and what moves between GPUs.

    scoring     core/models/flops.py
    LoRA        backward takes the gradients of activations alone, 2 x matrices; the adapters 6 in all. Flash
                attention's backward 2.5 of its forward (Dao 2023, arXiv 2307.08691: five products in place of two)
    full        backward 4 x matrices
    checkpoints another forward pass

    seconds = FLOPs / (peak x utilisation x GPUs) + communication

Communication is not overlapped (the engine sets overlap_comm=false): ZeRO-0, 1, 2 reduce and gather the trained
parameters once a step; ZeRO-3 gathers all parameters in each pass over a micro-batch (Rajbhandari et al. 2020, arXiv
1910.02054, section 7).
"""

from core.models.flops import Lengths, attention_flops
from core.models.memory import GB, Method, MicroBatch, Sharding
from core.models.shapes import Shape


def training_flops(shape: Shape, method: Method, lengths: Lengths, checkpointing: bool, eager: bool) -> float:
    """FLOPs of one prompt, forward and backward."""
    again = 1 if checkpointing else 0
    matrices = 2 * shape.matrices * lengths.mean * (1 + (2 if method == "full" else 1) + again)
    adapters = 0.0 if method == "full" else 2 * shape.adapters * lengths.mean * (3 + again)
    attention = attention_flops(shape, lengths)
    if eager:  # all pairs, the masked ones too; two products forward, four backward
        return matrices + adapters + 2 * attention * (1 + 2 + again)
    return matrices + adapters + attention * (1 + 2.5 + again)


def step_traffic(shape: Shape, method: Method, sharding: Sharding, batch: MicroBatch, micro_batches: float) -> float:
    """GB that each GPU sends in one optimiser step of `micro_batches` on each GPU, by ring algorithms."""
    share = (sharding.gpus - 1) / sharding.gpus / GB
    trained = shape.trained(method) * (batch.bytes if method == "full" else 4)
    if sharding.zero < 3:
        return 2 * trained * share
    passes = 3 if batch.checkpointing else 2
    return (passes * shape.parameters * batch.bytes + trained) * micro_batches * share
