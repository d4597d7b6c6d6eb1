"""A base with another score head, without a copy of its weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.folders import new_folder
from core.models.architecture import ENCODERS, HEADS, classifier_of, head_of
from core.models.folders import copy_tokenizer
from core.provenance import copy_learned

if TYPE_CHECKING:
    import torch


def linked_classifier(
    base: Path,
    folder: Path,
    tensors: Mapping[str, "torch.Tensor"],
    labels: Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """`base` as a sequence classifier in `folder`: links to its files, and a shard with the head.

    `tensors` are the head's (`score.weight` [labels, width]), in place of the base's own and of its `lm_head`;
    `settings` go into its config.json. A link is as good as the file it points to: keep the base where it is. A file
    that holds another head is copied without it.
    """
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    config |= {
        "architectures": [classifier_of(config["architectures"][0])],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    for of_the_old_head in ("auto_map", "pointwise"):
        config.pop(of_the_old_head, None)
    config |= settings or {}
    with new_folder(folder) as partial:
        weight_map = dict.fromkeys(tensors, "head.safetensors") | _link_shards(base, partial)
        save_file(dict(tensors), partial / "head.safetensors", metadata={"format": "pt"})
        (partial / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (partial / "config.json").write_text(json.dumps(config, indent=1))
        copy_tokenizer(base, partial)
        copy_learned(base, partial)
    return folder


def _link_shards(base: Path, folder: Path) -> dict[str, str]:
    """Link the files of the base's weights, or copy them without their heads; tensor -> file."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for shard in sorted(base.glob("*.safetensors")):
        target = folder / f"base-{shard.name}"
        with safe_open(shard, "pt") as file:
            held = list(file.keys())
            kept = [name for name in held if name.split(".")[0] not in HEADS]
            if all(name in kept or name.startswith("lm_head.") for name in held):
                target.symlink_to(shard.resolve())
            elif kept:  # vLLM passes over lm_head and refuses any other tensor that it does not know
                save_file({name: file.get_tensor(name) for name in kept}, target, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(kept, target.name)
    return weight_map


def head_tensors(model_type: str | None, weight: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """The tensors of a judge's score head [outputs, width] in the weights of its classifier."""
    name = head_of(model_type)
    bias = {f"{name}.bias": weight.new_zeros(len(weight))} if model_type in ENCODERS else {}
    return {f"{name}.weight": weight, **bias}
