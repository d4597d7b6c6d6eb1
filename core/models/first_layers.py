"""Depth pruning: a base's first decoder layers as a model folder of its own."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from core.artefacts.building import Artefact
from core.errors import UserError
from core.folders import new_folder
from core.models.architecture import layer_of
from core.models.folders import copy_tokenizer, model_hash
from core.provenance import copy_learned

if TYPE_CHECKING:
    import torch


def first_layers(base: Path, layers: int, root: Path) -> Path:
    """A copy of `base` with its first `layers` decoder layers: a depth-pruned start, made once, below `root`/models."""
    whole = json.loads((base / "config.json").read_text())
    if not 0 < layers <= whole["num_hidden_layers"]:
        raise UserError(f"model.layers={layers}: {base} has {whole['num_hidden_layers']} layers")
    config = whole | {"num_hidden_layers": layers}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    folder = root / "models" / f"{base.name}-first-{layers}-layers"
    artefact = Artefact(folder, "model", {"base": model_hash(base), "config": config}, [], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            with new_folder(folder) as partial:
                _write_weights(base, layers, partial)
                (partial / "config.json").write_text(json.dumps(config, indent=1))
                copy_tokenizer(base, partial)
                copy_learned(base, partial)
            artefact.finish()
    return folder


def _write_weights(base: Path, layers: int, folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            kept = [name for name in file.keys() if layer_of(name) < layers]  # noqa: SIM118
            tensors |= {name: file.get_tensor(name) for name in kept}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
