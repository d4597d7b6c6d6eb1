"""What the checks compute with: judges of few layers at full width, with random weights, and conversations for them.

Weights have unit gain, as in tests/tiny_models.py, so that attention attends and an error anywhere reaches the logits.
Windows are shorter than the longest conversation, and Gemma's caps low enough to count.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from core.config import from_mapping
from core.records import LABELS
from distill.config import Config
from gpu_check.bare import composed
from students.training.data import Example

Family = Literal["llama", "gemma2"]
VOCABULARY = 4096  # widths are real, and rows of the embedding are only looked up
WINDOW = 32
LAYERS = 2  # one with a window, one without
WIDTHS: dict[str, dict[str, int]] = {  # of Llama-3-8B and Gemma-2-9b
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "gemma2": {
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    },
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def working_dtype() -> torch.dtype:
    """What the framework trains in here: bf16 where the GPU computes in it, else fp32."""
    in_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if in_bf16 else torch.float32


def random_judge(
    folder: Path, family: Family, dry: bool, dtype: torch.dtype, gains: Mapping[str, float] | None = None
) -> Path:
    """Write a judge of `family`, two layers with random weights in `dtype`; tiny where the run is dry.

    `gains`: layers whose names end so give that many times as much.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    widths = TINY if dry else WIDTHS[family]
    gemma: dict[str, Any] = {
        "query_pre_attn_scalar": widths["head_dim"],
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 2.0,
    }
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        num_hidden_layers=LAYERS,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        **widths,
        **(gemma if family == "gemma2" else {}),
    )
    with device():
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    draw(model, gains or {})
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def draw(model: torch.nn.Module, gains: Mapping[str, float]) -> None:
    """Random weights of unit gain, drawn where they are; norms near their first gain. Then `gains`."""
    for i, (name, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator(parameter.device).manual_seed(i)
        noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
        if parameter.ndim == 1:
            parameter.add_(0.1 * noise)
        else:
            parameter.copy_(noise if "embed_tokens" in name else noise / parameter.shape[1] ** 0.5)
        for end, gain in gains.items():
            if name.endswith(f"{end}.weight"):  # Gemma's norms multiply by 1 + their weight
                parameter.copy_((1 + parameter) * gain - 1 if parameter.ndim == 1 else parameter * gain)


def conversations(count: int = 2, longest: int = 64) -> list[Example]:
    """Conversations of random token ids and unequal lengths, with votes and a teacher's logits."""
    generator = torch.Generator().manual_seed(0)

    def ids(tokens: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (tokens,), generator=generator).tolist()

    def triple() -> Any:
        return tuple((2 * torch.randn(3, generator=generator)).tolist())

    lengths = torch.linspace(longest / 3, longest, count).int().tolist()
    return [
        Example(
            id=str(i),
            ids=(ids(length), ids(length - 3)),
            votes=tuple(torch.rand(3, generator=generator).softmax(-1).tolist()),
            teacher=triple(),
            group=str(i),
        )
        for i, length in enumerate(lengths)
    ]


def configured(base: Path, *overrides: str) -> Config:
    """conf/ as it stands for a training of two steps, each over all conversations at once, with `overrides`."""
    values = composed(
        "engine=zero0",
        "engine.liger=false",
        "model.lora.dropout=0",  # the same steps on any device
        "train.epochs=2",
        "optimizer.warmup=0",
        "optimizer.decay=constant",
        "tracker=none",
        *overrides,
    )
    values["model"]["base"] = str(base)
    return from_mapping(Config, {**values, "run": "gpu-check"})
