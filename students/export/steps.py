"""From a trained judge to the model of its export, step by step: merged, made to fit into fp16, rounded.

Each step is a folder below models/, named by a hash of what it was made from: nothing is made twice, and other settings
live side by side.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.artefacts.identity import identity_hash
from core.artefacts.manifest import read_manifest
from core.config import to_mapping
from core.folders import copy_linked
from core.labels import noted
from core.models.folders import model_hash
from core.models.shards import DTYPES
from core.provenance import write_learned
from core.records import Conversation
from students.export.calibration_rows import calibration_prompts
from students.export.config import ExportConfig, QuantisationConfig
from students.export.formats import Format, Prompts, format_named
from students.export.half_precision import fit_into_fp16
from students.export.t4.model_files import MARGIN
from students.trained import TrainedJudge

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportModel:
    """The model of an export, and the hash under which its answers are kept.

    `extra`: how well its activations fit into fp16, for the manifest; empty for other types.
    """

    folder: Path
    content: str
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class Steps:
    """What all steps of an export have in common.

    `prompts`: token ids of training conversations; they follow from the judge, their number `rows`, and `seed`.
    """

    judge: TrainedJudge
    prompts: Prompts
    rows: int
    seed: int
    root: Path

    def artefact(self, step: str, model: Path, settings: Mapping[str, Any]) -> Artefact:
        """The folder of a step that reads `model`."""
        seen = {"judge": self.judge.manifest.content, "rows": self.rows, "seed": self.seed}
        identity = {**seen, "model": model_hash(model), **settings}
        return Artefact(self.root / "models" / f"{step}-{identity_hash(identity)}", step, identity, [], self.root)

    def finish(self, artefact: Artefact, extra: Mapping[str, Any]) -> None:
        write_learned(artefact.folder, self.judge.learned())
        artefact.finish(prompt=self.judge.manifest.prompt, extra={**extra, **noted(self.judge.labels)})


def export_model(
    judge: TrainedJudge, export: ExportConfig, training: Sequence[Conversation], root: Path, seed: int
) -> ExportModel:
    """The model of `judge` in `export.format`, calibrated on `training` conversations."""
    prompts = calibration_prompts(training, judge.renderer, export.calibration_rows, seed)
    steps = Steps(judge, prompts, export.calibration_rows, seed, root)
    model = judge.merged(root, DTYPES[export.dtype])
    if export.dtype == "fp16":
        model = in_half_precision(steps, model, export.margin)
    row = format_named(export.format)
    if row.write is not None:
        model = in_format(steps, model, row, export.quantisation)
    # A full tuning of this type is its own merged model, which has no manifest.
    manifest = read_manifest(model) if (model / MANIFEST).exists() else None
    unchanged = export.dtype == "fp32" and row.write is None
    if unchanged:
        content = f"{judge.manifest.content}/{model.name}"  # as the unquantised student, which it is
    else:
        content = judge.manifest.content if manifest is None else manifest.content
    return ExportModel(model, content, {} if manifest is None else manifest.extra)


def in_half_precision(steps: Steps, merged: Path, margin: float) -> Path:
    """`merged`, rescaled where its activations do not fit `margin` times into fp16. Its manifest says how they fit."""
    artefact = steps.artefact("half", merged, {"margin": margin})
    with artefact.building(wait=True) as lacking:
        if lacking:
            log.debug("measuring activations on %d training conversations", len(steps.prompts))
            found = fit_into_fp16(merged, artefact.folder, steps.prompts, margin)
            if not found.rescaled:
                copy_linked(merged, artefact.folder)
            log.info("the largest, %.0f at %s, fits %.0f times into fp16", found.largest, found.place, found.margin)
            steps.finish(artefact, {MARGIN: found.margin, "fp16": asdict(found)})
    return artefact.folder


def in_format(steps: Steps, model: Path, row: Format, settings: QuantisationConfig) -> Path:
    """`model` with its weights rounded; what its manifest says of fp16 is said of this one, too."""
    assert row.write is not None, row.name
    artefact = steps.artefact(row.name, model, {"quantisation": to_mapping(settings)})
    with artefact.building(wait=True) as lacking:
        if lacking:
            log.debug("writing %s", row.name)
            row.write(model, artefact.folder, settings, steps.prompts)
            steps.finish(artefact, read_manifest(model).extra if (model / MANIFEST).exists() else {})
    return artefact.folder
