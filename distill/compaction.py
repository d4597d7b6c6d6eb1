"""Many small parts of a store become few large ones, whole at every instant.

A new part names the parts whose rows it took over. From the moment it is there they count for nothing, so a kill
between its publication and their deletion leaves every row once; whoever opens the store next deletes them.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl

from distill.errors import UserError
from distill.parts import (
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
from distill.runs import MANIFEST, content_hash, read_manifest, write_json
from distill.store import mixed_parts, view

FINISHED_AS = "distill.finished_as"  # the manifest's content hash when the part was made
ROWS_PER_PART = 1_000_000


def compact(folder: Path, rows_per_part: int = ROWS_PER_PART) -> list[Path]:
    """Merge neighbouring parts of each fold into parts of at most `rows_per_part` rows, sorted by id and order.

    Returns the new parts. A finished store gets the content hash of its new files, so compact before training: a
    student that was trained before names another parent. Raises `UserError` where a process writes the store, where a
    part is damaged or of another making, or where the files are not those that the manifest was written for.
    """
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    with exclusive(folder) as parts:  # what killed processes left is gone after this, and so are the locks' own files
        if not parts:
            raise UserError(f"{folder} holds no parts: run the teacher stage, or check the path")
        if mixed := mixed_parts(parts):
            raise UserError(mixed[0])
        interrupted = {part.metadata.get(FINISHED_AS) for part in parts}
    finished_as = manifest.content if manifest else ""
    if manifest and finished_as not in interrupted and content_hash(folder) != finished_as:
        raise UserError(
            f"{folder} does not hold the files that its manifest.json was written for: "
            f"look with `python -m distill.store verify {folder}`, or score anew with overwrite=true"
        )
    with exclusive(folder) as parts:
        merged = [merge(folder, group, finished_as) for group in groups(parts, rows_per_part)]
    if manifest and (content := content_hash(folder)) != finished_as:
        with explained(folder):
            write_json(folder / MANIFEST, asdict(replace(manifest, content=content)))
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
        fits = last and part.origin.judge_fold == last[0].origin.judge_fold
        if fits and sum(p.height for p in last) + part.height <= rows_per_part:
            last.append(part)
        else:
            found.append([part])
    return [group for group in found if len(group) > 1]


def merge(folder: Path, group: Sequence[Part], finished_as: str) -> Path:
    """Publish the rows of `group` as one part with the highest number of its fold, then delete the group."""
    origin = group[0].origin
    rows = pl.concat([part.checked() for part in group]).sort("id", view(origin.columns))
    number = 1 + max(p.number for p in list_parts(folder) if p.origin.judge_fold == origin.judge_fold)
    path = part_path(folder, origin.judge_fold, number)
    replaces = json.dumps([part.path.name for part in group])
    publish(rows, path, {**origin.metadata(), REPLACES: replaces, FINISHED_AS: finished_as})
    with explained(folder):
        for part in group:
            part.path.unlink()
    return path
