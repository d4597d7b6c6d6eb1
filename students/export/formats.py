"""A judge in the format of its export: merged, made to fit into fp16, and rounded.

Each step is a folder below models/, named by a hash of what it was made from: nothing is made twice, and other settings
live side by side.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.artefacts.identity import hashed
from core.artefacts.manifest import read_manifest
from core.config import to_mapping
from core.folders import new_folder
from core.models.folders import digest
from core.models.shards import DTYPES
from core.provenance import write_learned
from core.records import Conversation
from students.export.calibration_rows import calibration_prompts
from students.export.config import ExportConfig, QuantisationConfig
from students.export.gguf import write_gguf
from students.export.gptq import repack_gptq
from students.export.half_precision import fit_into_fp16
from students.export.quantising import quantise
from students.export.t4 import MARGIN
from students.trained import TrainedJudge

log = logging.getLogger(__name__)
Prompts = Sequence[Sequence[int]]


def in_format(
    judge: TrainedJudge, export: ExportConfig, training: Sequence[Conversation], root: Path, seed: int
) -> tuple[Path, Path]:
    """The model of `judge` in `export.format`, calibrated on `training` conversations.

    Twice the same folder, but for gptq, whose layout only GPTQModel's kernels read: the second has the same weights in
    w8a16's. A manifest's `extra` tells how well the activations fit into fp16.
    """
    prompts = calibration_prompts(training, judge.renderer, export.calibration_rows, seed)
    seen = {"judge": judge.manifest.content, "rows": export.calibration_rows, "seed": seed}

    def made(step: str, source: Path, settings: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]) -> Path:
        identity = {**seen, "model": digest(source), **settings}
        folder = root / "models" / f"{step}-{hashed(identity)}"
        artefact = Artefact(folder, step, identity, [], root)
        with artefact.building(wait=True) as lacking:
            if lacking:
                extra = make(folder)
                write_learned(folder, judge.learned())
                artefact.finish(prompt=judge.manifest.prompt, extra=extra)
        return folder

    def rounded(source: Path, name: str) -> Path:
        def make(out: Path) -> dict[str, Any]:
            write_format(source, out, name, export.quantisation, prompts)
            return extra

        return made(name, source, {"quantisation": to_mapping(export.quantisation)}, make)

    model = judge.merged(root, DTYPES[export.dtype])
    extra: dict[str, Any] = {}
    if export.dtype == "fp16":
        merged = model
        model = made("half", merged, {"margin": export.margin}, lambda out: fitted(merged, out, prompts, export.margin))
        extra = read_manifest(model).extra
    if export.format == "merged":
        return model, model
    if export.format == "gptq":
        packed = rounded(model, "w8a16")
        return rounded(packed, "gptq"), packed
    model = rounded(model, export.format)
    return model, model


def fitted(model: Path, out: Path, prompts: Prompts, margin: float) -> dict[str, Any]:
    """Write `out`: `model`, rescaled where its activations do not fit `margin` times into fp16. Gives what it found."""
    log.info("measuring activations on %d training conversations", len(prompts))
    found = fit_into_fp16(model, out, prompts, margin)
    if not found.rescaled:
        copy_linked(model, out)
    log.info("the largest, %.0f at %s, fits %.0f times into fp16", found.largest, found.place, found.margin)
    return {MARGIN: found.margin, "fp16": asdict(found)}


def write_format(model: Path, out: Path, name: str, settings: QuantisationConfig, prompts: Prompts) -> None:
    """Write `model` into `out` in one of the formats that round its weights."""
    log.info("writing %s", name)
    if name == "gguf":
        write_gguf(model, out)
    elif name == "gptq":
        repack_gptq(model, out)
    else:
        quantise(model, out, name, settings, prompts)


def copy_linked(source: Path, target: Path) -> None:
    """A copy of a folder, without its manifest, that takes no room where the file system can link."""

    def linked(file: str, copy: str) -> None:
        try:
            os.link(os.path.realpath(file), copy)
        except OSError:
            shutil.copy2(file, copy)

    with new_folder(target) as partial:
        ignored = shutil.ignore_patterns(MANIFEST)
        shutil.copytree(source, partial, copy_function=linked, ignore=ignored, dirs_exist_ok=True)
