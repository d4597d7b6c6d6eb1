"""What fits on a GPU: bytes of training under each ZeRO stage, and of a judge at inference.

Training, on each of N GPUs, for P parameters of e bytes (bf16: 2), p of which are trained, in t bytes:

    weights     e (P - p) + t p; LoRA matrices and their head are in fp32 (t = 4), a full tuning in e. nf4 matrices have
                4.127 bits (Dettmers et al. 2023, arXiv 2305.14314: 4, and 0.127 of doubly quantised constants).
                ZeRO-3: / N, and what DeepSpeed keeps gathered; at the start it holds all of them
    gradients   t p; ZeRO-2, 3: / N
    optimiser   AdamW's two moments and, in bf16 or under ZeRO, an fp32 copy: 8 p or 12 p; ZeRO-1, 2, 3: / N
                (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1)
    activations what autograd saves, see `saved_bytes`; with checkpointing the input of each layer and one layer whole
                (Chen et al. 2016, arXiv 1604.06174)
    buffers     DeepSpeed's gradient bucket of 5e8 elements (reduce_bucket_size), in all stages but 0
    reserve     CUDA context, NCCL and kernels' workspaces, a constant of the configuration

A GB is 1e9 bytes. No logits over a vocabulary exist: a judge has three outputs for each row.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

from core.models.shapes import Shape

Method = Literal["lora", "qlora", "full"]
METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
NF4_BYTES = 4.127 / 8
BUCKET = 500_000_000  # elements, DeepSpeed's default for reduce_bucket_size
GATHERED = 1_050_000_000  # elements, ZeRO-3's stage3_max_live_parameters and stage3_prefetch_bucket_size
GB = 1e9
# Optimiser's bytes of a trained bf16 parameter by optimizer.master_weights; kahan: copy, moments and rest in bf16.
MASTERS = {"fp32": 12, "kahan": 8, "none": 6}


@dataclass(frozen=True)
class Memory:
    """GB on one GPU. `start`: the weights, before ZeRO-3 has partitioned them; else 0."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    buffers: float
    reserve: float
    start: float = 0.0

    @property
    def total(self) -> float:
        """The most that is held at any time."""
        parts = sum(getattr(self, field.name) for field in fields(self) if field.name != "start")
        return max(parts, self.start + self.reserve)


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of `tokens`, its longest row of `longest`, and how it is computed.

    `bytes`: of an element of the base, 2 for bf16 and 4 for fp32. `mask_bytes`: of a dropout mask's, 1 on GPUs; on
    CPUs PyTorch keeps it in the activations' own type. `eager`: attention that stores every score; flash attention and
    sdpa do not.
    """

    tokens: int
    longest: int
    bytes: int
    dropout: bool
    checkpointing: bool
    eager: bool
    mask_bytes: int = 1


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed spreads a training over `gpus`; `offload`: optimiser states, under ZeRO-3 weights too, are not
    on the GPU. `masters` is `optimizer.master_weights`.
    """

    zero: int
    offload: bool
    gpus: int
    masters: str = "fp32"


def training_memory(
    shape: Shape, method: Method, sharding: Sharding, batch: MicroBatch, overhead: float, reserve: float
) -> Memory:
    """GB on one GPU. `overhead`: of activations over the formula's, fragmentation among it; `reserve` in GB."""
    zero, gpus, trained = sharding.zero, sharding.gpus, shape.trained(method)
    size = batch.bytes if method == "full" else 4
    nf4 = shape.matrices if method == "qlora" else 0
    frozen = shape.parameters - trained if method == "full" else shape.parameters
    weights = nf4 * NF4_BYTES + (frozen - nf4) * batch.bytes + trained * size
    states = optimiser_bytes(size, sharding)
    shares = gpus if zero else 1
    in_step = 4 * trained / shares if size == 2 else 0  # fp32 gradients; activations are gone by then
    held, start = weights, 0.0
    if zero == 3:
        gathered = min(shape.parameters, max(GATHERED, shape.largest)) * batch.bytes
        held, start = (0 if sharding.offload else weights / gpus) + gathered, weights
    return Memory(
        weights=held / GB,
        gradients=trained * size / (gpus if zero >= 2 else 1) / GB,
        optimiser=0.0 if sharding.offload else states * trained / shares / GB,
        activations=max(overhead * activation_bytes(shape, method, batch), in_step) / GB,
        buffers=(BUCKET * size if zero else 0) / GB,
        reserve=reserve,
        start=start / GB,
    )


def optimiser_bytes(size: int, sharding: Sharding) -> int:
    """Of each trained parameter of `size` bytes, on all GPUs together."""
    if size == 2:
        return MASTERS[sharding.masters]
    return 8 if sharding.zero == 0 else 12


def checkpoint_gb(shape: Shape, method: Method, sharding: Sharding, element: int) -> float:
    """GB of a checkpoint on disk, of a base with `element` bytes: what is trained, and the optimiser's states."""
    size = element if method == "full" else 4
    return shape.trained(method) * (size + optimiser_bytes(size, sharding)) / GB


def activation_bytes(shape: Shape, method: Method, batch: MicroBatch) -> float:
    """The most that activations and their gradients take at a time, as backward enters the last layer."""
    layer, e = saved_bytes(shape, method, batch), batch.bytes
    # Gradients of the feed-forward layer's three inner tensors and of the residual stream, which live at a time.
    working = (3 * shape.mlp + 2 * shape.width) * e + 4 * shape.width
    ends = (e + 4) * shape.width  # the embeddings, and the final norm's input in fp32
    held = shape.layers * e * shape.width + layer if batch.checkpointing else shape.layers * layer
    return batch.tokens * (held + working + ends)


def saved_bytes(shape: Shape, method: Method, batch: MicroBatch) -> float:
    """Bytes that autograd saves for backward, per token of one decoder layer, by transformers' Llama, Qwen2, Gemma-2.

    Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, count the like for GPT: s b h (34 + 5 a s / h). Here, with
    width h, queries q, keys and values k each, feed-forward f, heads a:

        norms       4 h of input in fp32, 4 of the inverse root, each
        attention   q + 2 k after rotation, q of output, 4 a of log-sums; eager: 4 a s of softmax in fp32, a s of it in
                    bf16 and a s of capped scores, keys and values repeated for every query head
        feed-forward  3 f: the activation's input and output, and the other factor
        linear maps  a trained map's input: 2 h + q + f, where maps that read the same one share it. A frozen map needs
                    none. Adapters over bf16 have a copy in fp32 for each of the seven maps, 5 h + q + f
        dropout     a mask for each adapter, 5 h + q + f; and a copy of each input, where there was none

    `tests/core/models/test_memory.py` compares it with what autograd saves. Liger's kernels save less.
    """
    e, h, f, a = batch.bytes, shape.width, shape.mlp, shape.heads
    q, k = a * shape.head_dim, shape.kv_heads * shape.head_dim
    dropout = batch.dropout and method != "full"
    copied = method != "full" and e == 2
    saved = shape.norms * (4 * h + 4) + e * (q + 2 * k) + 3 * e * f
    if copied:
        saved += 4 * (5 * h + q + f)
    elif dropout:
        saved += e * (5 * h + q + f)
    else:
        saved += e * (2 * h + f)
    if not batch.eager or not (copied or dropout):
        saved += e * q  # attention's output, by attention itself or as the input of the next map
    if batch.eager:
        saved += a * batch.longest * (4 + (2 if e == 2 else 0) + (e if shape.capped else 0)) + 2 * e * (q - k)
    else:
        saved += 4 * a
    if dropout:
        saved += batch.mask_bytes * (5 * h + q + f)
    if method == "full":
        return saved + shape.norms * h * (4 if shape.wide_gains else e)
    return saved + 7 * 4 * shape.rank


def inference_memory(shape: Shape, matrix_bytes: float, gpus: int, tokens: int) -> float:
    """GB on each of `gpus` (tensor parallel) with `tokens` in the cache: weights, keys and values, one layer's work.

    Keys and values: 2 x layers x kv heads x head size x 2 bytes for each token. Embeddings and norms have 2 bytes.
    """
    weights = shape.matrices * matrix_bytes + (shape.parameters - shape.matrices) * 2
    cache, working = work_per_token(shape.layers, shape.kv_heads * shape.head_dim, shape.mlp, shape.width)
    return (weights + (cache + working) * tokens) / gpus / GB


def work_per_token(layers: int, keys: int, mlp: int, width: int, element: int = 2) -> tuple[int, int]:
    """Bytes of a token in flight: its `keys` values wide keys and values in all layers, and one layer's work."""
    return 2 * layers * keys * element, (3 * mlp + 4 * width) * element


def smallest(fits: Callable[[int], bool], most: int = 64) -> int | None:
    """The smallest power of two of GPUs that `fits`, null where not even `most` do."""
    return next((n for n in (2**i for i in range(most.bit_length())) if fits(n)), None)
