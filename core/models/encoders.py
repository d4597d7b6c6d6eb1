"""Encoders as bases: their weights under the names that transformers' sequence classifier gives them."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from core.artefacts.building import Artefact
from core.models.architecture import ENCODERS, HEADS
from core.models.folders import model_hash, new_model
from core.provenance import copy_learned

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)
PREFIX, POOLER = "bert.", "bert.pooler.dense"
POOLING = "1_Pooling/config.json"  # of sentence-transformers


def named_as_classifier(base: Path, root: Path, name: str | None = None) -> Path:
    """`base`, or for an encoder whose tensors have other names a copy with those of its classifier, made once below
    `root`/models, under `name` if it is given.

    An encoder is stored with or without its prefix, under names of older versions, and with or without a pooler, the
    layer through which its classifier reads the first token. One that is not there, or that a sentence embedding was
    trained past, starts as the identity: what stands in its place is noise.
    """
    config = json.loads((base / "config.json").read_text())
    if config.get("model_type") not in ENCODERS:
        return base
    from core.models.shards import locate

    names = locate(base)
    if _fit(names) and not (base / POOLING).exists():
        return base
    folder = root / "models" / (name or f"{base.name}-encoder")
    artefact = Artefact(folder, "model", {"base": model_hash(base), "encoder": 1}, [], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            with new_model(folder, base, config | {"architectures": ["BertModel"]}) as partial:
                _write(base, partial, trained_pooler=not (base / POOLING).exists())
                copy_learned(base, partial)
            artefact.finish()
    return folder


def _fit(names: Iterable[str]) -> bool:
    known = all(name.split(".")[0] in (PREFIX[:-1], *HEADS) for name in names)
    return known and f"{POOLER}.weight" in names and not any(name.endswith((".gamma", ".beta")) for name in names)


def _write(base: Path, folder: Path, trained_pooler: bool) -> None:
    import torch
    from safetensors.torch import save_file

    from core.models.shards import locate, read_tensor

    sources = locate(base)
    tensors: dict[str, torch.Tensor] = {}
    for name in sources:
        if name.split(".")[0] in HEADS or name.endswith("position_ids"):
            continue
        new = name.removesuffix(".gamma") + ".weight" if name.endswith(".gamma") else name
        new = new.removesuffix(".beta") + ".bias" if name.endswith(".beta") else new
        tensors[new if new.startswith(PREFIX) else PREFIX + new] = read_tensor(sources, name)
    if not trained_pooler or f"{POOLER}.weight" not in tensors:
        width = tensors[f"{PREFIX}embeddings.word_embeddings.weight"].shape[1]
        log.debug("the pooler of %s starts as the identity", base)
        tensors |= {f"{POOLER}.weight": torch.eye(width), f"{POOLER}.bias": torch.zeros(width)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
