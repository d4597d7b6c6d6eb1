"""What a training of a model consists of: its shape with what LoRA or a full tuning would train, without weights."""

from dataclasses import replace
from pathlib import Path

from core.errors import UserError
from core.models.architecture import is_frozen
from core.models.families import Decoder, decoder_of
from core.models.shapes import Shape, facts_of, meta_classifier, shape_of
from core.pointwise import outputs_of
from students.training.config import ModelConfig


def trained_shape(base: str, root: Path, settings: ModelConfig) -> Shape:
    """The shape of `base` as `settings` would train it. Raises `UserError` where its configuration cannot be had."""
    facts = facts_of(base, root)
    depth = facts.get("num_hidden_layers")
    if settings.layers is not None and isinstance(depth, int) and settings.layers > depth:
        raise UserError(f"model.layers={settings.layers}: {base} has {depth} layers")
    decoder = decoder_of(facts, settings.layers)
    found = None if decoder is None else counted(decoder, settings)
    return counted_on_meta_tensors(base, root, settings) if found is None else found


def counted(decoder: Decoder, settings: ModelConfig) -> Shape | None:
    """By arithmetic; None where that does not know which matrices PEFT would adapt."""
    shape, lora, frozen = decoder.shape, settings.lora, settings.freeze_layers
    targets = [*decoder.maps] if lora.targets == "all-linear" else lora.targets
    if isinstance(targets, str) or not targets or not {*targets} <= {*decoder.maps} or frozen >= shape.layers:
        return None
    magnitudes = lora.method == "dora"
    of_map = {name: lora.rank * (rows + columns) + rows * magnitudes for name, (rows, columns) in decoder.maps.items()}
    adapted = sum(of_map[name] for name in {*targets}) * (shape.layers - frozen)
    return replace(
        shape,
        capped=shape.capped and settings.softcapping,
        adapters=adapted + len(outputs_of(settings.kind == "pointwise")) * shape.width,
        tuned=shape.parameters - (decoder.embedding + frozen * decoder.layer if frozen else 0),
        rank=lora.rank,
    )


def counted_on_meta_tensors(base: str, root: Path, settings: ModelConfig) -> Shape:
    """By transformers' and PEFT's own classes, whatever the model."""
    import torch

    from students.training.model import with_lora

    model = meta_classifier(base, root, settings.layers)
    shape = shape_of(model)
    tuned = sum(p.numel() for name, p in model.named_parameters() if not is_frozen(name, settings.freeze_layers))
    with torch.device("meta"):
        adapted = with_lora(model, settings)
    return replace(
        shape,
        capped=shape.capped and settings.softcapping,
        adapters=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        tuned=tuned,
        rank=settings.lora.rank,
    )
