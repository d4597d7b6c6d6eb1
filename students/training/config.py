"""What `conf/model/`, `train/`, `loss/`, `optimizer/`, `engine/` and `tracker/` hold."""

from dataclasses import dataclass
from typing import Literal

from core.bounds import Betas, Count, Natural, NonNegative, PartialShare, Positive, Share, ShareBelowOne


@dataclass(frozen=True)
class LoraConfig:
    """`method`: the scale is alpha / rank, for rslora alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732).

    dora learns each output's magnitude beside the direction that LoRA changes (Liu et al. 2024, arXiv 2402.09353).
    """

    method: Literal["lora", "rslora", "dora"]
    rank: Count
    alpha: Count
    dropout: ShareBelowOne
    targets: str | list[str]


@dataclass(frozen=True)
class ModelConfig:
    """The judge that `distill.student` trains, and which of its weights.

    `tuning`: `lora` trains matrices beside the weights, `full` the weights. `head`: `auto` continues from the score
    head of a base that is a judge already. `softcapping` false: Gemma-2's caps are off, in this judge and in all that
    is made of it.
    """

    base: str | None
    layers: Count | None
    freeze_layers: Natural
    head: Literal["auto", "new"]
    softcapping: bool
    dtype: Literal["auto", "fp32", "bf16"]
    load_in_4bit: bool
    tuning: Literal["lora", "full"]
    lora: LoraConfig


@dataclass(frozen=True)
class TrainConfig:
    """On how much it is trained, in which steps, and what chooses the checkpoint."""

    epochs: Count
    schedule_epochs: Count | None
    batch_conversations: Count
    length_pool_steps: Count
    validation_share: PartialShare
    validate_every: Count | None


@dataclass(frozen=True)
class TermConfig:
    """One term of the loss. It moves straight from `weight` to `final_weight` over the training, null: it stays."""

    weight: NonNegative
    temperature: Positive
    final_weight: NonNegative | None
    final_temperature: Positive | None


@dataclass(frozen=True)
class RowWeightsConfig:
    """How much a conversation counts in the loss."""

    votes: Literal["one", "count"]
    confidence: NonNegative
    sources: dict[str, NonNegative]


@dataclass(frozen=True)
class LossConfig:
    """The terms that `students/training/losses.py` defines; those of weight 0 are absent."""

    cross_entropy: TermConfig
    kl: TermConfig
    reverse_kl: TermConfig
    jensen_shannon: TermConfig
    skew_kl: TermConfig
    cosine: TermConfig
    squared_error: TermConfig
    swap_consistency: TermConfig
    rows: RowWeightsConfig

    @property
    def terms(self) -> dict[str, TermConfig]:
        """The terms that count at any time of the training, by name."""
        every = {name: term for name, term in vars(self).items() if isinstance(term, TermConfig)}
        return {name: term for name, term in every.items() if term.weight or term.final_weight}

    @property
    def distils(self) -> bool:
        """Whether a term needs a teacher."""
        return bool(self.terms.keys() - {"cross_entropy", "swap_consistency"})


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. `master_weights` says what keeps small steps of weights in bf16 from being rounded away."""

    master_weights: Literal["fp32", "kahan", "none"]
    lr: NonNegative
    head_lr: NonNegative
    betas: Betas
    eps: Positive
    weight_decay: NonNegative
    warmup: Share
    warmup_steps: Count | None
    decay: Literal["cosine", "linear", "constant"]
    min_lr_ratio: Share
    clip: NonNegative


@dataclass(frozen=True)
class EngineConfig:
    """How a step is carried out; nothing here changes what is learnt.

    `offload`: where optimiser states (and, with zero_stage 3, parameters) are kept.
    """

    micro_batch_tokens: Count
    gradient_checkpointing: bool
    zero_stage: Literal[0, 1, 2, 3]
    offload: Literal["none", "cpu", "nvme"]
    nvme_path: str | None
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"]
    liger: bool
    padding_free: bool
    checkpoint_minutes: NonNegative


@dataclass(frozen=True)
class TrackerConfig:
    """Where curves go. `samples`: how many validation conversations each validation shows, 0 for none."""

    backend: Literal["wandb", "tensorboard", "none"]
    project: str
    samples: Natural
    sample_characters: Count


@dataclass(frozen=True)
class SweepConfig:
    """Which trial of which study this run is; the sweeper sets both, null outside of a search."""

    study: str | None
    trial: Natural | None
