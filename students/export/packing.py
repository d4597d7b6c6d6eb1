"""A judge that is small enough to be shipped: its adapter, and all of an export but the weights.

    run/       what the training left: adapter, what it learned from, history, manifest
    export/    what the export measured: canaries (texts of training data), fidelity, prediction sets, manifest

Whoever has the base, by its name on the hub or from a package, merges the weights again (`unpack`); the canaries tell
whether they compute what was measured. A judge of six layers then takes four megabytes instead of two hundred.
"""

import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST, SCRATCH, file_digests
from core.artefacts.manifest import Manifest, read_manifest
from core.errors import UserError
from core.exported import PACKED_EXPORT, PACKED_RUN, unpacked_folder
from core.folders import copy_linked, new_folder
from core.models.folders import TOKENIZER_FILES
from students.trained import TrainedJudge, open_trained

UNPACKED = torch.float32  # what any device computes, and what a merge gives again anywhere, but for its last digits
MODEL_FILES = (*TOKENIZER_FILES, "model*", "config.json", "generation_config*")  # which a merge makes again


def pack(judge: TrainedJudge, export: Path, out: Path) -> None:
    """Write `out` from a trained `judge` and its `export`, which is merged and in fp32.

    What else lies in `out`, such as a model card, is lost. Raises `UserError` for a full tuning, and for an export of
    another judge, format or type.
    """
    manifest = read_manifest(export, "export", "make export")
    settings = manifest.config["export"]
    if judge.tuned_whole:
        raise UserError(f"{judge.folder} is a full tuning: its weights are all there is, and are too large to ship")
    if judge.manifest.content not in manifest.parents.values():
        raise UserError(f"{export} was not made from {judge.folder}: export that run")
    if (settings["format"], settings["dtype"]) != ("merged", "fp32"):
        raise UserError(
            f"{export} is in format {settings['format']} and {settings['dtype']}: export with export.format=merged "
            "export.dtype=fp32, which a merge makes again"
        )
    with new_folder(out) as partial:
        shutil.copytree(judge.folder, partial / PACKED_RUN, ignore=shutil.ignore_patterns(*SCRATCH, ".*"))
        shutil.copytree(export, partial / PACKED_EXPORT, ignore=lambda _, names: [n for n in names if _is_model(n)])


def unpack(folder: Path, root: Path) -> Path:
    """The export that a packed judge amounts to, below `root`/models, made once.

    Raises `UserError` without the base, where files have changed, and for the export of another run.
    """
    packed = read_manifest(folder / PACKED_EXPORT, "export", verify=False)  # it lacks the weights
    check_measured(folder, packed)
    judge = open_trained(folder / PACKED_RUN, root, f"get {folder} anew, its adapter is incomplete")
    if judge.manifest.content not in packed.parents.values():
        raise UserError(
            f"{folder} mixes two judges: {PACKED_EXPORT}/ was not made from what lies in {PACKED_RUN}/; get it anew"
        )
    place = unpacked_folder(folder, root)
    artefact = Artefact(place, "export", packed.config, [], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            copy_linked(judge.merged(root, UNPACKED), place)
            shutil.copytree(
                *(folder / PACKED_EXPORT, place),
                copy_function=_anew,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns(MANIFEST),
            )
            artefact.finish(rows=packed.rows, prompt=packed.prompt, extra=packed.extra)
    return place


def _anew(file: str, copy: str) -> None:
    """Copy a file in place of a link, not through it: the merged model keeps its own."""
    Path(copy).unlink(missing_ok=True)
    shutil.copy2(file, copy)


def check_measured(folder: Path, packed: Manifest) -> None:
    """Raise `UserError` where what the export measured is not there as its manifest, `packed`, says, or more is."""
    export, stated = folder / PACKED_EXPORT, packed.files or {}
    there = file_digests(export)
    gone = [name for name in stated if name not in there and not _is_model(Path(name).name)]
    if changed := gone + [name for name, digest in there.items() if stated.get(name) != digest]:
        raise UserError(
            f"{folder / PACKED_EXPORT} has changed since it was packed ({', '.join(changed)}): get {folder} anew"
        )


def _is_model(name: str) -> bool:
    """Whether a file of an export is the model or its tokenizer."""
    return any(fnmatchcase(name, pattern) for pattern in MODEL_FILES)
