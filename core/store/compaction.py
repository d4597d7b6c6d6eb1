"""Merge the small part files of a store into few large ones; crash-safe at every step.

A new part names the parts whose rows it took over. From the moment it is there they count for nothing, so a kill
between its publication and their deletion leaves every row once; whoever opens the store next deletes them.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl

from core.artefacts.contents import MANIFEST, content_hash, content_of, file_digests
from core.artefacts.manifest import COMPACTING, read_manifest
from core.errors import UserError
from core.json_files import write_json
from core.store.parts import (
    NAME,
    NO_FOLD,
    REPLACES,
    Part,
    explained,
    list_parts,
    locked,
    part_files,
    part_path,
    publish,
    tidy,
)
from core.store.reading import mixed_parts
from core.store.rows import view

ROWS_PER_PART = 1_000_000


def compact(folder: Path, rows_per_part: int = ROWS_PER_PART) -> list[Path]:
    """Merge neighbouring parts of each fold into parts of at most `rows_per_part` rows, sorted by id and order.

    Returns the new parts. A finished store gets the content hash of its new files, so compact before training: a
    student that was trained before names another parent. Raises `UserError` where a process writes the store, where a
    part is damaged or of another making, or where the files are not those that the manifest was written for.
    """
    manifest = read_manifest(folder, verify=False) if (folder / MANIFEST).exists() else None
    with exclusive(folder) as parts:  # what killed processes left is gone after this, and so are the locks' own files
        if not parts:
            raise UserError(f"{folder} holds no parts: run the teacher stage, or check the path")
        if mixed := mixed_parts(parts):
            raise UserError(mixed[0])
    interrupted = manifest is not None and COMPACTING in manifest.extra
    if manifest and not interrupted and content_hash(folder) != manifest.content:
        raise UserError(
            f"{folder} does not hold the files that its manifest.json was written for: "
            f"look with `python -m distill.store verify {folder}`, or score anew with overwrite=true"
        )
    with exclusive(folder) as parts:
        due = groups(parts, rows_per_part)
        if manifest and due:
            with explained(folder):
                compacting = replace(manifest, extra={**manifest.extra, COMPACTING: True})
                write_json(folder / MANIFEST, asdict(compacting))
        merged = [merge(folder, group) for group in due]
    if manifest and (merged or interrupted):
        with explained(folder):
            extra = {key: value for key, value in manifest.extra.items() if key != COMPACTING}
            digests = file_digests(folder)
            whole = replace(manifest, content=content_of(digests), files=digests, extra=extra)
            write_json(folder / MANIFEST, asdict(whole))
    return merged


@contextmanager
def exclusive(folder: Path) -> Iterator[list[Part]]:
    """The store's parts while nobody else writes any of its folds. Raises `UserError` where somebody does."""
    names = [match[1] for path in part_files(folder) if (match := NAME.fullmatch(path.name))]
    names += [path.name.removeprefix(".lock-") for path in folder.glob(".lock-*")]
    parts: list[Part] = []
    with ExitStack() as stack:
        for fold in sorted({NO_FOLD if name == "x" else int(name) for name in names}):
            with explained(folder):
                stack.enter_context(locked(folder, fold))
                parts = tidy(folder, fold)
        yield parts


def groups(parts: Sequence[Part], rows_per_part: int) -> list[list[Part]]:
    """Neighbouring parts of one fold whose rows fit into one part; those that stay alone are left out."""
    found: list[list[Part]] = []
    for part in parts:
        last = found[-1] if found else []
        fits = last and part.origin.writer == last[0].origin.writer
        if fits and sum(p.height for p in last) + part.height <= rows_per_part:
            last.append(part)
        else:
            found.append([part])
    return [group for group in found if len(group) > 1]


def merge(folder: Path, group: Sequence[Part]) -> Path:
    """Publish the rows of `group` as one part with the highest number of its fold, then delete the group."""
    origin = group[0].origin
    rows = pl.concat([part.checked() for part in group]).sort("id", view(origin.columns))
    number = 1 + max(p.number for p in list_parts(folder) if p.origin.writer == origin.writer)
    path = part_path(folder, origin.writer, number)
    replaces = json.dumps([part.path.name for part in group])
    publish(rows, path, {**origin.metadata(), REPLACES: replaces})
    with explained(folder):
        for part in group:
            part.path.unlink()
    return path
