"""The manifest of a finished artefact: read, checked against the artefact's files, compared with its parents.

`manifest.json` is written last, so a folder that has one is finished. It names the stage, the configuration, the
parents with their content hashes, the versions, the row counts and the prompt hashes.

Manifests are verified, not trusted: whoever opens an artefact compares its files with what the manifest says of them,
once per process, and again once a file was touched. Of an artefact above `WHOLE` bytes only names and sizes are
compared: reading the weights of a 70B model takes minutes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from core.artefacts.contents import MANIFEST, content_of, counted_files, file_digest, file_digests
from core.errors import UserError
from core.json_files import read_json
from core.renamed import with_new_names

WHOLE = 32 * 2**30
GLANCE = 128 * 2**20  # read in a tenth of a second
COMPACTING = "compacting"  # in `extra` while a store's parts are merged: until that is done nobody compares its files
NAMED = 3  # how many files a message names


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds. `parents` maps an artefact's path (relative to the root) to its `content`.

    `files`: [bytes, sha256] of each file that counts for `content`; None in artefacts of earlier versions.
    """

    stage: str
    config: dict[str, Any]
    parents: dict[str, str]
    content: str
    rows: dict[str, int] = field(default_factory=dict)
    prompt: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    created: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[Any]] | None = None


REQUIRED = {"stage": str, "config": dict, "parents": dict, "content": str}
_verified: dict[Path, tuple[str, dict[str, tuple[int, int]]]] = {}  # content, and each file's size and time


def read_manifest(folder: Path, stage: str | None = None, remedy: str = "", verify: bool = True) -> Manifest:
    """The manifest of a finished artefact.

    Raises `UserError` where the artefact is missing or unfinished, was written by another stage or another version, and
    unless `verify` is off where its files have changed since; `remedy` says which command makes it.
    """
    path = folder / MANIFEST
    if not path.exists():
        state = "is not finished (it has no manifest.json)" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {state}{': ' + remedy if remedy else ''}")
    manifest = _parsed(path, remedy)
    if stage is not None and manifest.stage != stage:
        raise UserError(
            f"{folder} was written by stage {manifest.stage!r}, expected {stage!r}{': ' + remedy if remedy else ''}"
        )
    if verify and (changes := _changes(folder, manifest)):
        raise UserError(
            f"{folder} has changed since its manifest was written ({', '.join(changes[:NAMED])}): "
            f"restore it, or remove it and make it again: python {manifest.command}"
        )
    return manifest


def _parsed(path: Path, remedy: str) -> Manifest:
    values = read_json(path, f"remove {path.parent} and make it again{': ' + remedy if remedy else ''}")
    stated = values if isinstance(values, dict) else {}
    unknown = sorted(stated.keys() - {each.name for each in fields(Manifest)})
    missing = [name for name, kind in REQUIRED.items() if not isinstance(stated.get(name), kind)]
    if unknown or missing:
        raise UserError(
            f"{path} is of another version of this project (unknown keys {unknown}, missing keys {missing}): use that "
            f"version, or remove {path.parent} and make it again{': ' + remedy if remedy else ''}"
        )
    return Manifest(**{**stated, "config": with_new_names(stated["config"])})


def _changes(folder: Path, manifest: Manifest) -> list[str]:
    """How the files differ from those that the manifest was written for, each as a few words."""
    if COMPACTING in manifest.extra:
        return []
    there = {name: path.stat() for name, path in counted_files(folder)}
    if changes := _listed_changes({name: stat.st_size for name, stat in there.items()}, manifest):
        return changes
    key, state = folder.resolve(), (manifest.content, {name: (s.st_size, s.st_mtime_ns) for name, s in there.items()})
    if _verified.get(key) != state and sum(stat.st_size for stat in there.values()) <= WHOLE:
        digests = file_digests(folder)
        if content_of(digests) != manifest.content:
            stated = manifest.files or {}
            other = [f"{name} has other bytes" for name in stated if digests[name] != stated[name]]
            return other or ["other files, or other bytes in them"]
        _verified[key] = state
    return []


def _listed_changes(sizes: Mapping[str, int], manifest: Manifest) -> list[str]:
    """How names and sizes differ from those that the manifest lists."""
    if manifest.files is None:
        return []
    changes = [f"{name} is gone" for name in manifest.files if name not in sizes]
    changes += [f"{name} was not there" for name in sizes if name not in manifest.files]
    return changes + [
        f"{name} has {sizes[name]:,} bytes, not {n:,}"
        for name, (n, _) in manifest.files.items()
        if sizes.get(name, n) != n
    ]


def changes_at_a_glance(folder: Path, manifest: Manifest) -> tuple[list[str], bool]:
    """(changes as reading the manifest finds them, whether they are sure), looking only into files that are newer.

    Where those files hold more than `GLANCE` bytes they are not read: they are reported as newer, and not as sure.
    """
    if COMPACTING in manifest.extra:
        return [], True
    there = {name: (path, path.stat()) for name, path in counted_files(folder)}
    if changes := _listed_changes({name: stat.st_size for name, (_, stat) in there.items()}, manifest):
        return changes, True
    written = (folder / MANIFEST).stat().st_mtime
    newer = {name: path for name, (path, stat) in there.items() if stat.st_mtime > written}
    if sum(there[name][1].st_size for name in newer) > GLANCE:
        return [f"{name} is newer than the manifest, and too large to be compared here" for name in newer], False
    digests = {name: file_digest(path) for name, path in newer.items()}
    stated = manifest.files or {}
    return [f"{name} has other bytes" for name, of in digests.items() if of != stated.get(name, of)], True


def parent_contents(parents: Iterable[Path], root: Path, verify: bool = True) -> dict[str, str]:
    """Path (relative to `root` where it lies below it) -> content hash of every parent artefact."""
    found = {p: read_manifest(p, verify=verify).content for p in parents}
    return {str(p.relative_to(root) if p.is_relative_to(root) else p): content for p, content in found.items()}


def changed_parents(manifest: Manifest, root: Path, verify: bool = True) -> list[str]:
    """The parents of an artefact that exist and hold something else than it was made from."""
    there = {name: root / name for name in manifest.parents if (root / name / MANIFEST).exists()}
    now = {name: read_manifest(folder, verify=verify).content for name, folder in there.items()}
    return [name for name, content in now.items() if content != manifest.parents[name]]


def made_from(manifest: Manifest, parents: Iterable[Path], root: Path, verify: bool = True) -> bool:
    """Whether an artefact was made from these, as they are now."""
    return parent_contents(parents, root, verify).items() <= manifest.parents.items()
