"""What `conf/plan/` holds."""

from dataclasses import dataclass

from core.bounds import Count, NonNegative, Positive, PositiveShare, ShareBelowOne


@dataclass(frozen=True)
class UtilisationConfig:
    """Shares of the peak that each kind of work reaches."""

    scoring: PositiveShare
    """Prompt processing in vLLM."""
    training: PositiveShare
    """Training without quantised weights."""
    training_4bit: PositiveShare
    """Training with 4-bit base weights, which are unpacked for each use."""


@dataclass(frozen=True)
class AssumedConfig:
    """What `distill.plan` assumes where data are not prepared, or a model has no tokenizer here."""

    conversations: Count
    """Number of conversations."""
    tokens: Count
    """Mean tokens of a prompt before `prompt.max_tokens` cuts it; lengths are taken as exponentially distributed."""
    padding: ShareBelowOne
    """Share of a training batch's tokens that are padding; rows are sorted by length."""
    cached: ShareBelowOne
    """Share of a scored prompt's tokens that come from the prefix cache: both orders share instruction and question."""


@dataclass(frozen=True)
class PlanConfig:
    """The machine and the work that `distill.plan` assumes."""

    gpu: str
    """Name of the GPU, as the plan prints it."""
    memory_gb: Positive
    """Memory of one GPU in GB, as torch reports it."""
    peak_tflops: Positive
    """Peak of one GPU in TFLOPS, in bf16 without sparsity."""
    utilisation: UtilisationConfig
    memory_overhead: Positive
    """Activations over the formula's: fragments of the allocator, other temporary tensors."""
    reserve_gb: NonNegative
    """GB of each GPU that the CUDA context, NCCL and workspaces hold."""
    gpus: Count
    """GPUs that train or score together, on all machines."""
    gpus_per_node: Count
    """GPUs of one machine."""
    node_bandwidth: Positive
    """GB/s from one GPU to the others of its node."""
    network_bandwidth: Positive
    """GB/s from one GPU to other nodes."""
    price_per_gpu_hour: NonNegative | None
    """Price of one GPU for an hour, in any currency; null: no cost is printed."""
    measured: str | None
    """File of `python -m bench.gpu_speed`, such as artifacts/plan/nvidia-a100-sxm4-80gb.json, whose rates, overhead and
    memory replace those above; null: everything is assumed."""
    assumed: AssumedConfig
