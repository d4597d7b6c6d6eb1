"""What a configuration leads to: the folder of each stage's artefact, and all that decides what is in it.

The stages build these artefacts, and `distill.status` looks whether they lie there: both ask here what they are.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.config import to_mapping
from core.exported import is_packed
from distill.config import Config


def data_folder(config: Config) -> Path:
    """data/<name>: the conversations."""
    return config.root / "data" / config.data.name


def conversations(config: Config, inputs: Mapping[str, Any]) -> Artefact:
    """The prepared data. `inputs`: what identifies each source, its layout and the keys for that, by its name."""
    identity = {**to_mapping(config.data), "limit": config.limit, "inputs": dict(inputs)}
    for key in ("layout", "grades", "pairs_per_prompt"):  # each in the identity of the inputs that it changes
        del identity[key]
    del identity["max_rejected"]  # changes nothing in what it lets pass
    return Artefact(data_folder(config), "prepare", identity, [], config.root)


def exported_judge(config: Config, judge: Path, prompt: Mapping[str, Any]) -> Artefact:
    """The export of the trained `judge`, or of an average, in its folder; `prompt` is what it was trained on."""
    identity = {
        "export": {**to_mapping(config.export), "compare_folds": None},
        "fold": config.fold,
        "prompt": prompt,
        "fidelity": to_mapping(config.fidelity),
        "canaries": {**to_mapping(config.canaries), "on_failure": None},
        "scorer": config.scorers.check.identity,
        "t4": {"memory_gb": config.t4.memory_gb, "batch_tokens": config.t4.batch_tokens},
    }
    return Artefact(config.export_folder(), "export", identity, [judge], config.root)


def judge_folder(config: Config, chosen: str | None) -> Path:
    """The export that a user has `chosen`, or the experiment's own; one that was packed is unpacked."""
    return unpacked(config.export_folder(chosen), config.root)


def named_judges(config: Config) -> dict[str, str]:
    """The folders and files in `eval.judges`, by name; those that were packed are unpacked."""
    return {name: str(unpacked(Path(path), config.root)) for name, path in config.eval.judges.items()}


def unpacked(folder: Path, root: Path) -> Path:
    """`folder`, or what is in it where it holds a packed judge."""
    if not is_packed(folder):
        return folder
    from students.export.packing import unpack

    return unpack(folder, root)


def evaluation_folder(config: Config) -> Path:
    """eval/<run>: metrics, predictions and the report."""
    return config.root / "eval" / config.run


def evaluation(config: Config, split: str, judges: Iterable[Path], files: Mapping[str, str]) -> Artefact:
    """The evaluation of all that `judges` on the rows of a `split`: folders, and digests of `files` without one.

    Seeds are compared whether or not it is there.
    """
    of_eval = {name: value for name, value in to_mapping(config.eval).items() if name not in ("seeds", "variants")}
    of_eval |= {"split": split, "fold": config.fold, "limit": config.limit, "canaries": config.canaries.on_failure}
    scorers = {"student": config.scorers.student.identity, "exported": config.scorers.exported.identity}
    identity = {"eval": of_eval, "scorers": scorers, "files": dict(files)}
    parents = [folder for folder in dict.fromkeys([data_folder(config), *judges]) if (folder / MANIFEST).exists()]
    return Artefact(evaluation_folder(config), "eval", identity, parents, config.root)
