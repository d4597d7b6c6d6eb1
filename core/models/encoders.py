"""Encoders as bases: their weights under the names that transformers' sequence classifier gives them."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from core.artefacts.building import Artefact
from core.errors import UserError
from core.models.architecture import ENCODERS, HEADS, head_of
from core.models.folders import TOKENIZER_FILES, new_model
from core.provenance import LEARNED_FROM, copy_learned

log = logging.getLogger(__name__)
PREFIX, POOLER = "bert.", "bert.pooler.dense"
HEAD = head_of("bert")
POOLING = "1_Pooling/config.json"  # of sentence-transformers


def named_as_classifier(base: Path, root: Path, name: str | None = None) -> Path:
    """`base`, or for an encoder whose tensors have other names a copy with those of its classifier, made once below
    `root`/models, under `name` or else under its own with a hash of all that it holds.

    An encoder is stored with or without its prefix, under names of older versions, and with or without a pooler, the
    layer through which its classifier reads the first token. One that is not there, or that a sentence embedding was
    trained past, starts as the identity: what stands in its place is noise.
    """
    config = json.loads((base / "config.json").read_text())
    if config.get("model_type") not in ENCODERS:
        return base
    from core.models.shards import locate

    names = locate(base)  # and the file that holds each
    if _fit(names) and not (base / POOLING).exists():
        return base
    held = _digest(base)
    folder = root / "models" / (name or f"{base.name}-{held[:8]}-encoder")
    artefact = Artefact(folder, "model", {"base": held}, [], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            is_judge = any(name.startswith(f"{HEAD}.") for name in names)
            architecture = "BertForSequenceClassification" if is_judge else "BertModel"
            with new_model(folder, base, config | {"architectures": [architecture]}) as partial:
                _write(names, partial, trained_pooler=not (base / POOLING).exists())
                copy_learned(base, partial)
            artefact.finish()
    return folder


def check_room(model: Path, max_tokens: int) -> None:
    """Raise `UserError` for prompts that are longer than an encoder, whose positions are a table, has places for."""
    config = json.loads((model / "config.json").read_text())
    if config.get("model_type") in ENCODERS and max_tokens > config["max_position_embeddings"]:
        raise UserError(
            f"prompt.max_tokens={max_tokens}: {model} has {config['max_position_embeddings']} positions: lower it"
        )


def _digest(base: Path) -> str:
    """sha256 of all that a copy is made of: encoders are small enough to be read whole."""
    found = hashlib.sha256()
    kinds = ("config.json", "*.safetensors", *TOKENIZER_FILES, POOLING, LEARNED_FROM)
    for path in sorted({path for kind in kinds for path in base.glob(kind)}):
        found.update(f"{path.relative_to(base)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()


def _fit(names: Iterable[str]) -> bool:
    known = all(name.split(".")[0] in (PREFIX[:-1], *HEADS) for name in names)
    return known and f"{POOLER}.weight" in names and not any(name.endswith((".gamma", ".beta")) for name in names)


def _write(sources: Mapping[str, Path], folder: Path, trained_pooler: bool) -> None:
    import torch
    from safetensors.torch import save_file

    from core.models.shards import read_tensor

    tensors: dict[str, torch.Tensor] = {}
    for name in sources:
        if name.endswith("position_ids") or name.split(".")[0] in {*HEADS} - {HEAD}:
            continue
        new = name.removesuffix(".gamma") + ".weight" if name.endswith(".gamma") else name
        new = new.removesuffix(".beta") + ".bias" if name.endswith(".beta") else new
        tensors[new if new.startswith((PREFIX, f"{HEAD}.")) else PREFIX + new] = read_tensor(sources, name)
    if not trained_pooler or f"{POOLER}.weight" not in tensors:
        width = tensors[f"{PREFIX}embeddings.word_embeddings.weight"].shape[1]
        log.debug("the pooler in %s starts as the identity", folder)
        tensors |= {f"{POOLER}.weight": torch.eye(width), f"{POOLER}.bias": torch.zeros(width)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
