"""Folders that appear whole or not at all: a kill leaves nothing half made in their place."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.artefacts.contents import MANIFEST


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` when the block ends.

    Where `folder` is a link, as to a larger disk, the link stays and what it points to is replaced. A block that fails
    leaves the older folder as it was.
    """
    place = folder.resolve() if folder.is_symlink() else folder
    partial, old = (place.with_name(f".{place.name}.{state}") for state in ("partial", "old"))
    if old.exists():  # a kill came while the folder was replaced
        shutil.rmtree(old) if place.exists() else old.rename(place)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if place.exists():  # moved aside first: a kill between leaves the old folder or none, never half of one
        place.rename(old)
        partial.rename(place)
        shutil.rmtree(old)
    else:
        partial.rename(place)


def copy_linked(source: Path, target: Path) -> None:
    """A copy of a folder, without its manifest, that takes no room where the file system can link."""

    def linked(file: str, copy: str) -> None:
        try:
            os.link(os.path.realpath(file), copy)
        except OSError:
            shutil.copy2(file, copy)

    ignored = shutil.ignore_patterns(MANIFEST)
    with new_folder(target) as partial:
        shutil.copytree(source, partial, copy_function=linked, ignore=ignored, dirs_exist_ok=True)
