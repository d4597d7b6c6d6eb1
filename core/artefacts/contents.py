"""What an artefact's files contain: a digest for each file, and one content hash over all of them.

The content hash identifies an artefact wherever it is copied. It covers names and bytes of every file but the manifest,
hidden files, and what a training run needs only on its way.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SCRATCH = ("checkpoints", "wandb", "tensorboard")  # a training run needs these on its way, and nobody reads them later


def content_hash(folder: Path) -> str:
    """sha256 over the names and bytes of all `counted_files` of `folder`."""
    return content_of(file_digests(folder))


def content_of(digests: Mapping[str, Sequence[Any]]) -> str:
    """The content hash of files with these `file_digests`."""
    digest = hashlib.sha256()
    for name, (_, sha256) in digests.items():
        digest.update(name.encode() + b"\0" + bytes.fromhex(sha256))
    return digest.hexdigest()


def file_digests(folder: Path) -> dict[str, list[Any]]:
    """[bytes, sha256] of every file that counts for the content hash, by its path in `folder`."""
    return {name: file_digest(path) for name, path in counted_files(folder)}


def file_digest(path: Path) -> list[Any]:
    """[bytes, sha256] of a file."""
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def counted_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path in `folder`, path) of every file that counts for the content hash, sorted."""
    skipped = {MANIFEST, *SCRATCH}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)  # locks, half-written files, notebook checkpoints
        if not hidden and not skipped & set(relative.parts):
            yield str(relative), path
