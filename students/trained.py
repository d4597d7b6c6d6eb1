"""A judge whose training is finished: what it was made of, and its weights as folders that engines load."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.artefacts.building import Artefact
from core.artefacts.manifest import Manifest, read_manifest
from core.errors import UserError
from core.json_files import read_json
from core.labels import Labels, labels_of, noted
from core.models.folders import model_hash, new_model
from core.models.resolving import resolve
from core.models.shards import locate, read_shapes, read_tensor, write_weights
from core.pointwise import JUDGE, Choice, choice_of
from core.pointwise import noted as noted_choice
from core.prompts import Renderer, renderer_of
from core.provenance import Learned, read_learned, write_learned
from students.merging import caps_off, merge_adapter, unmerge_adapter


@dataclass(frozen=True)
class TrainedJudge:
    """A student, a teacher's fold, or an average of either, in the folder that its training wrote.

    `base`: the model that it was trained from. `renderer`: makes the prompts that it was trained with.
    """

    folder: Path
    manifest: Manifest
    base: Path
    renderer: Renderer

    @property
    def max_tokens(self) -> int:
        return self.renderer.config.max_tokens

    @property
    def labels(self) -> Labels:
        """What the people whose votes it learned from could vote for."""
        return labels_of(self.manifest)

    def learned(self) -> Learned:
        """Which conversations it learned from, through its teachers, too."""
        return read_learned(self.folder)

    @property
    def choice(self) -> Choice | None:
        """How a pointwise judge's rewards become logits; None for a pairwise one."""
        if not self.renderer.pointwise:
            return None
        path = self.folder / ("model" if self.tuned_whole else "adapter") / JUDGE
        return choice_of(read_json(path, "train the judge again, with overwrite=true"))

    @property
    def settings(self) -> dict[str, Any]:
        """Keys of config.json that differ from its base's."""
        own = {} if self.choice is None else noted_choice(self.choice)
        if self.manifest.config["model"]["softcapping"]:
            return own
        return own | caps_off(json.loads((self.base / "config.json").read_text()))

    @property
    def tuned_whole(self) -> bool:
        """Whether all weights were trained, so that there is no adapter."""
        return bool(self.manifest.config["model"]["tuning"] == "full")

    def merged(self, root: Path, dtype: torch.dtype | None = None) -> Path:
        """Base and adapter as one sequence classifier below `root`/models, made once.

        Its weights are stored as `dtype`, None for that of the base. A full tuning of that type is one already.
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
                artefact.finish(prompt=self.manifest.prompt, extra=noted(self.labels))
        return folder

    def unmerged(self, root: Path) -> tuple[Path, Path]:
        """The base under the trained score head, and the adapter to serve beside it, without a copy of the weights.

        Raises `UserError` for a full tuning.
        """
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
                artefact.finish(prompt=self.manifest.prompt, extra=noted(self.labels))
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
    """Open what `stage` wrote: distill.student, which trains teachers, too, or distill.export ("average").

    Raises `UserError` with `remedy` where it is not there, and where it was trained on other prompts than this code
    renders.
    """
    manifest = read_manifest(folder, stage, remedy)
    model: dict[str, Any] = manifest.config["model"]
    base = resolve(model["base"], root, model["layers"])
    return TrainedJudge(folder, manifest, base, renderer_of(manifest, folder, base))
