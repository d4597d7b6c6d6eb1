"""A finished training run, as later stages see it: what it was made of, and one merged folder that any engine loads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.artefacts.building import Artefact
from core.artefacts.manifest import Manifest, read_manifest
from core.errors import UserError
from core.models.folders import model_hash, new_model
from core.models.resolving import resolve
from core.models.shards import locate, read_shapes, read_tensor, write_weights
from core.prompts import Renderer, renderer_of
from core.provenance import Learned, read_learned, write_learned
from students.merging import caps_off, merge_adapter, unmerge_adapter


@dataclass(frozen=True)
class TrainedJudge:
    """One fold of a student or teacher. `renderer` is the prompt it was trained with, read from its manifest."""

    folder: Path
    manifest: Manifest
    base: Path
    renderer: Renderer

    @property
    def max_tokens(self) -> int:
        return self.renderer.config.max_tokens

    def learned(self) -> Learned:
        """What it learned from, its teachers included."""
        return read_learned(self.folder)

    @property
    def settings(self) -> dict[str, None]:
        """What its config.json says otherwise than its base's."""
        if self.manifest.config["model"]["softcapping"]:
            return {}
        return caps_off(json.loads((self.base / "config.json").read_text()))

    @property
    def tuned_whole(self) -> bool:
        return bool(self.manifest.config["model"]["tuning"] == "full")

    def merged(self, root: Path, dtype: torch.dtype | None = None) -> Path:
        """Base and adapter as one sequence classifier below `root`/models, made once; a full tuning is one already.

        Its weights are stored as `dtype`, None for that of the base.
        """
        stored = stored_dtype(self.folder / "model" if self.tuned_whole else self.base)
        dtype = dtype or stored
        if self.tuned_whole and dtype == stored:
            return self.folder / "model"
        name = f"merged-{self.manifest.content[:16]}" + ("" if dtype == stored else f"-{str(dtype).split('.')[1]}")
        identity = {"adapter": self.manifest.content, "base": model_hash(self.base)}
        folder = root / "models" / name
        artefact = Artefact(folder, "merge", identity, [], root)
        with artefact.building(wait=True) as lacking:
            if lacking and self.tuned_whole:
                convert(self.folder / "model", folder, dtype)
            elif lacking:
                merge_adapter(self.base, self.folder / "adapter", folder, dtype, self.settings)
            if lacking:
                write_learned(folder, self.learned())
                artefact.finish(prompt=self.manifest.prompt)
        return folder

    def unmerged(self, root: Path) -> tuple[Path, Path]:
        """Base with its score head, and the adapter to be served beside it: no copy of the base's weights."""
        if self.tuned_whole:
            raise UserError(
                f"{self.folder} is a full tuning and has no adapter to serve beside: set teacher.merge=true"
            )
        folder = root / "models" / f"unmerged-{self.manifest.content[:16]}"
        identity = {"adapter": self.manifest.content, "base": model_hash(self.base)}
        artefact = Artefact(folder, "merge", identity, [], root)
        with artefact.building(wait=True) as lacking:
            if lacking:
                bare = folder / "adapter"
                unmerge_adapter(self.base, self.folder / "adapter", folder / "model", bare, self.settings)
                write_learned(folder / "model", self.learned())
                artefact.finish(prompt=self.manifest.prompt)
        return folder / "model", folder / "adapter"


def stored_dtype(base: Path) -> torch.dtype:
    """The type in which a model's weights are stored, which a merged model keeps."""
    config = json.loads((base / "config.json").read_text())
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def convert(model: Path, out: Path, dtype: torch.dtype) -> None:
    """Write `out`: the model in `model` with its weights stored as `dtype`."""
    config = json.loads((model / "config.json").read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    config.pop("torch_dtype", None)
    sources = locate(model)
    with new_model(out, model, config) as partial:
        write_weights(partial, read_shapes(model, sources), lambda name: read_tensor(sources, name), dtype)


def open_trained(folder: Path, root: Path, remedy: str, stage: str = "student") -> TrainedJudge:
    """Open a finished run, or with `stage` "average" the average of several.

    Raises `UserError` where it is missing or was trained on other prompts than would be rendered now.
    """
    manifest = read_manifest(folder, stage, remedy)
    model: dict[str, Any] = manifest.config["model"]
    base = resolve(model["base"], root, model["layers"])
    return TrainedJudge(folder, manifest, base, renderer_of(manifest, folder, base))
