"""What the rules read of an exported model: config.json, types and shapes of tensors, sizes of files.

No weight is loaded.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.artefacts.contents import MANIFEST
from core.errors import UserError
from core.models.architecture import layer_of
from core.models.shards import stored

MARGIN = "fp16_margin"  # in the manifest's `extra`
EXAMPLE = "artifacts/exports/demo/w8a8"
NEEDED = (  # in config.json: what the rules and the memory's formula read
    *("model_type", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads"),
)
BYTES_OF = {"F16": 2, "BF16": 2, "F32": 4}  # as safetensors names them


@dataclass(frozen=True)
class ModelFiles:
    """`tensors`: name -> safetensors' name of the type, and the shape.

    `weight_bytes`: of the weights as their reader holds them. `margin`: how many times the largest activation fits into
    fp16, as `distill.export` measured it.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, list[int]]]
    weight_bytes: int
    margin: float | None

    @property
    def family(self) -> str:
        return str(self.config["model_type"])

    @property
    def dtype(self) -> str:
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    @property
    def quantisation(self) -> Mapping[str, Any] | None:
        """config.json's quantization_config."""
        return self.config.get("quantization_config")


def read_model_files(folder: Path, load_in_8bit: bool) -> ModelFiles:
    """`load_in_8bit`: whether the model's reader rounds plain weights to int8 (bitsandbytes).

    Raises `UserError` where the folder holds no exported judge, or a file of weights that is broken.
    """
    config, tensors = _read_config(folder), stored(folder)
    size = sum(path.stat().st_size for kind in ("safetensors", "gguf") for path in folder.glob(f"*.{kind}"))
    if load_in_8bit and "quantization_config" not in config:
        size -= _saved_in_8bit(tensors)
    manifest = folder / MANIFEST
    margin = json.loads(manifest.read_text()).get("extra", {}).get(MARGIN) if manifest.exists() else None
    return ModelFiles(folder, config, tensors, size, margin)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"

    def refused(reason: str) -> UserError:
        return UserError(f"{folder} holds no exported judge ({reason}): give a folder such as {EXAMPLE}")

    if not path.exists():
        raise refused("there is no config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise refused(f"config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise refused(f"config.json is a {type(config).__name__}, expected an object")
    if missing := [key for key in NEEDED if key not in config]:
        raise refused(f"config.json of a {config.get('model_type', 'nameless')} model lacks {', '.join(missing)}")
    quantised = config.get("quantization_config")
    if quantised is not None and not _is_whole(quantised):
        raise refused(f"quantization_config in config.json does not say how the weights are stored: {quantised}")
    return config


def _is_whole(quantised: Any) -> bool:
    """Whether a quantization_config has what the rules read."""
    if not isinstance(quantised, dict):
        return False
    groups = quantised.get("config_groups")
    if quantised.get("quant_method") == "compressed-tensors":
        return isinstance(groups, dict) and bool(groups) and all(isinstance(group, dict) for group in groups.values())
    return True  # a method that no rule knows, which the rule "method" says


def _saved_in_8bit(tensors: Mapping[str, tuple[str, list[int]]]) -> int:
    """Bytes less than stored where bitsandbytes rounds the layers' linear maps to int8, with a fp32 scale a row.

    Embeddings, norms and the score head stay as they are.
    """
    shapes = [(BYTES_OF[dtype], shape) for name, (dtype, shape) in tensors.items() if layer_of(name) >= 0]
    return sum((size - 1) * math.prod(shape) - 4 * shape[0] for size, shape in shapes if len(shape) == 2)
