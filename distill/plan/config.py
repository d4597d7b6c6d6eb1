"""What `conf/plan/` holds."""

from dataclasses import dataclass

from core.bounds import Count, NonNegative, Positive, PositiveShare, ShareBelowOne


@dataclass(frozen=True)
class UtilisationConfig:
    """Shares of the peak that each kind of work reaches."""

    scoring: PositiveShare
    training: PositiveShare
    training_4bit: PositiveShare


@dataclass(frozen=True)
class AssumedConfig:
    """What `distill.plan` assumes where data are not prepared, or a model has no tokenizer here."""

    conversations: Count
    tokens: Count
    padding: ShareBelowOne
    cached: ShareBelowOne


@dataclass(frozen=True)
class PlanConfig:
    """The machine and the work that `distill.plan` assumes; `measured`: a file that `bench.gpu_speed` wrote.

    `memory_overhead`: activations over the formula's; `reserve_gb`: what context and libraries hold. Bandwidths are of
    one GPU, in GB/s, within a node of `gpus_per_node` and between nodes.
    """

    gpu: str
    memory_gb: Positive
    peak_tflops: Positive
    utilisation: UtilisationConfig
    memory_overhead: Positive
    reserve_gb: NonNegative
    gpus: Count
    gpus_per_node: Count
    node_bandwidth: Positive
    network_bandwidth: Positive
    price_per_gpu_hour: NonNegative | None
    measured: str | None
    assumed: AssumedConfig
