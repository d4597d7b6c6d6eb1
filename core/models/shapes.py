"""What a model consists of, counted on meta tensors: transformers' own class without weights. `families.py` counts
well-known ones without it.

The configuration comes from a folder, the hub's local cache, `conf/plan/models/shapes.yaml` (public facts of models
whose repositories are gated) or, last, the hub itself.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.architecture import ENCODERS, head_of
from core.models.packages import PIP
from core.records import LABELS

SHAPES = Path(__file__).resolve().parents[2] / "conf" / "plan" / "models" / "shapes.yaml"
HUB_TIMEOUT_S = 5.0  # for a file of a kilobyte


@dataclass(frozen=True)
class Shape:
    """A judge: `parameters` of backbone and score head, of them `matrices` in the decoder layers' linear maps.

    `largest`: elements of the largest tensor. `language_head`: what the causal language model has beyond the backbone.
    `windowed` of the `layers` attend to the last `window` tokens alone; scores are `capped` in Gemma-2. `norms`: of
    each layer; `wide_gains`: they multiply in fp32 (Gemma). `adapters`: what LoRA of `rank` trains, the score head
    among it; `tuned`: what a full tuning trains; 0 where nothing is trained.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    window: int | None
    windowed: int
    capped: bool
    norms: int
    wide_gains: bool
    parameters: int
    matrices: int
    largest: int
    language_head: int
    adapters: int = 0
    tuned: int = 0
    rank: int = 0

    def trained(self, method: str) -> int:
        """Parameters that are trained by `full` tuning, or else by LoRA."""
        return self.tuned if method == "full" else self.adapters


def meta_classifier(base: str, root: Path, layers: int | None = None) -> Any:
    """`base` as a judge with its first `layers` layers (None: all), on the meta device: shapes without weights.

    Raises `UserError` where its configuration cannot be had.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    config = model_config(base, root)
    config.num_labels = len(LABELS)
    if layers is not None:
        if not 0 < layers <= config.num_hidden_layers:
            raise UserError(f"model.layers={layers}: {base} has {config.num_hidden_layers} layers")
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)


def shape_of(model: Any) -> Shape:
    """Count a sequence classifier of transformers, whatever device it is on; no training of it is planned."""
    import torch

    config = model.config
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    head, encoder = head_of(config.model_type), config.model_type in ENCODERS
    linear = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != head}
    norms = 2 if encoder else sum("norm" in name for name, _ in model.base_model.layers[0].named_children())
    heads, types = config.num_attention_heads, getattr(config, "layer_types", None) or []
    return Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", heads),
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        mlp=config.intermediate_size,
        window=getattr(config, "sliding_window", None),
        windowed=types.count("sliding_attention"),
        capped=bool(getattr(config, "attn_logit_softcapping", None)),
        norms=norms,
        wide_gains=config.model_type.startswith("gemma"),
        parameters=sum(sizes.values()),
        matrices=sum(sizes[f"{name}.weight"] for name in linear),
        largest=max(sizes.values()),
        language_head=0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size,
    )


def model_config(base: str, root: Path) -> Any:
    """transformers' configuration of `base`, from the nearest place that has it."""
    from transformers import AutoConfig

    found = _nearest(base, root)
    return AutoConfig.from_pretrained(found) if isinstance(found, Path) else AutoConfig.for_model(**found)


def facts_of(base: str, root: Path) -> dict[str, Any]:
    """What config.json says of `base`, from the nearest place that has it, without transformers' own defaults."""
    found = _nearest(base, root)
    facts: dict[str, Any] = json.loads((found / "config.json").read_text()) if isinstance(found, Path) else found
    return facts


def _nearest(base: str, root: Path) -> Path | dict[str, Any]:
    """The folder of a model's config.json, or what `SHAPES` says in its place."""
    import yaml

    if (folder := folder_of(base, root)) is not None:
        return folder
    known = yaml.safe_load(SHAPES.read_text())
    for facts in known.values():
        if base in facts["names"]:
            return {key: value for key, value in facts.items() if key != "names"}
    return _from_hub(base, sorted(known))


def folder_of(base: str, root: Path) -> Path | None:
    """The folder on this machine that holds at least the model's configuration, None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    folder = root / "models" / base.removeprefix(PIP) if base.startswith(PIP) else Path(base)
    if (folder / "config.json").is_file():
        return folder
    if base.startswith(PIP) or base.count("/") != 1:
        return None
    cached = try_to_load_from_cache(base, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _from_hub(base: str, known: list[str]) -> Path:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base, "config.json", etag_timeout=HUB_TIMEOUT_S)).parent
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, httpx.HTTPError) as error:
        raise UserError(
            f"the configuration of {base!r} is not on this machine, and the download from the hub failed "
            f"({type(error).__name__}): give a folder with its config.json, or add its numbers to {SHAPES.name}, "
            f"which knows {', '.join(known)}"
        ) from error
