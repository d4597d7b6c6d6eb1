"""What `conf/model/`, `train/`, `loss/`, `optimizer/`, `engine/` and `tracker/` hold."""

from dataclasses import dataclass, replace
from typing import Any, Literal

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

    `tuning`: `lora` trains matrices beside the weights, `full` the weights themselves.
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
    """How long it is trained, in which steps, and what chooses the checkpoint."""

    epochs: Count
    schedule_epochs: Count | None
    batch_conversations: Count
    length_pool_steps: Count
    validation_share: PartialShare
    validate_every: Count | None


@dataclass(frozen=True)
class VotesTermConfig:
    """A term of the loss that compares the judge with the votes."""

    weight: NonNegative


@dataclass(frozen=True)
class TeacherTermConfig:
    """A term of the loss that compares the judge with its teacher, both softened by `temperature`."""

    weight: NonNegative
    temperature: Positive


@dataclass(frozen=True)
class RowWeightsConfig:
    """How much a conversation counts in the loss."""

    votes: Literal["one", "count"]
    confidence: NonNegative
    sources: dict[str, NonNegative]


@dataclass(frozen=True)
class LossConfig:
    """A weighted sum of terms; each is named as its function in `students/training/losses.py`. Weight 0: absent."""

    cross_entropy: VotesTermConfig
    kl: TeacherTermConfig
    cosine: TeacherTermConfig
    rows: RowWeightsConfig

    @property
    def terms(self) -> dict[str, VotesTermConfig | TeacherTermConfig]:
        """The terms that have a weight, by name."""
        every = {n: t for n, t in vars(self).items() if isinstance(t, VotesTermConfig | TeacherTermConfig)}
        return {name: term for name, term in every.items() if term.weight}

    @property
    def distils(self) -> bool:
        """Whether a term needs a teacher."""
        return any(isinstance(term, TeacherTermConfig) for term in self.terms.values())

    def of_votes_alone(self) -> "LossConfig":
        """The loss of a teacher: cross-entropy with the votes, whatever else is configured."""
        absent: dict[str, Any] = {name: replace(term, weight=0.0) for name, term in self.terms.items()}
        return replace(self, **{**absent, "cross_entropy": VotesTermConfig(1.0)})


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. `master_weights` says what keeps small steps of weights in bf16 from being rounded away."""

    master_weights: Literal["fp32", "kahan", "none"]
    lr: NonNegative
    head_lr: NonNegative
    betas: Betas
    eps: Positive
    weight_decay: NonNegative
    warmup: NonNegative
    decay: Literal["cosine", "linear", "constant"]
    min_lr_ratio: Share
    clip: NonNegative


@dataclass(frozen=True)
class EngineConfig:
    """How a step is carried out; nothing here changes what is learnt."""

    micro_batch_tokens: Count
    gradient_checkpointing: bool
    zero_stage: Literal[0, 1, 2, 3]
    offload: str
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"]
    liger: bool
    padding_free: bool
    checkpoint_minutes: NonNegative


@dataclass(frozen=True)
class TrackerConfig:
    """Where curves go."""

    backend: Literal["wandb", "tensorboard", "none"]
    project: str
    samples: Natural


@dataclass(frozen=True)
class SweepConfig:
    """Which trial of which study this run is. The sweeper sets both; null without a search."""

    study: str | None
    trial: Natural | None
