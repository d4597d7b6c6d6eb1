"""Where judges come from: their artefacts, and all that these were made from, up to the data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class Lineage:
    """`places` of judges; the manifests of these and of everything before them, by place, nearest first.

    A place is a path below the artefacts' root, as manifests name it. `data` is that of the conversations.
    """

    data: str
    places: dict[str, str]
    manifests: dict[str, Manifest]


def trace(artefacts: Mapping[str, Path], data: Path, root: Path) -> Lineage:
    """Follow the parents of `artefacts` (by judge) and of `data` as far as they are still there."""

    def place(path: Path) -> str:
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    places = {judge: place(path) for judge, path in artefacts.items()}
    manifests: dict[str, Manifest] = {}
    waiting = [*places.values(), place(data)]
    while waiting:
        here = waiting.pop(0)
        if here not in manifests and (root / here / MANIFEST).exists():
            manifests[here] = read_manifest(root / here, verify=False)  # only told, not read
            waiting += manifests[here].parents
    return Lineage(place(data), places, manifests)
