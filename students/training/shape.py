"""What a training of a model consists of: its shape with what LoRA or a full tuning would train, without weights."""

from dataclasses import replace
from pathlib import Path

import torch

from core.models.shapes import Shape, meta_classifier, shape_of
from students.training.config import ModelConfig
from students.training.model import with_lora


def trained_shape(base: str, root: Path, settings: ModelConfig) -> Shape:
    """The shape of `base` as `settings` would train it. Raises `UserError` where its configuration cannot be had."""
    model = meta_classifier(base, root, settings.layers)
    shape = shape_of(model)
    frozen = [f"layers.{i}." for i in range(settings.freeze_layers)] + ["embed_tokens"] * bool(settings.freeze_layers)
    tuned = sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in frozen))
    with torch.device("meta"):
        adapted = with_lora(model, settings)
    return replace(
        shape,
        capped=shape.capped and settings.softcapping,
        adapters=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        tuned=tuned,
        rank=settings.lora.rank,
    )
