"""Whether a judge may be shipped: what it is made of, and what its files tell of the machine that made it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.artefacts.manifest import changed_parents, read_manifest
from core.data.table import load_conversations
from core.errors import UserError
from core.provenance import read_learned
from core.tables import read_parquet
from eval.canaries.checking import CANARIES
from proof.sources.source import Base, Source
from proof.sources.table import BASES, SOURCES
from students.trained import TrainedJudge

TABLE = "proof/sources/table.py"
# A path from the root, of two parts or more: no part of a URL, nor the end of a relative path.
MACHINE_PATH = re.compile(r"(?<![\w.:/\\-])/[\w.+-]+/[^\s\"',\\]+")


@dataclass(frozen=True)
class Part:
    """How many conversations of `source` the judge learned from, and of how many its export holds the texts."""

    source: Source
    learned: int
    held: int


@dataclass(frozen=True)
class Origins:
    """What a judge is made of: its base, and parts of the prepared data that its manifest calls `data`."""

    base: Base
    data: str
    parts: Sequence[Part]


def origins(
    judge: TrainedJudge,
    export: Path,
    root: Path,
    sources: Mapping[str, Source] = SOURCES,
    bases: Mapping[str, Base] = BASES,
) -> Origins:
    """What a judge and its `export` are made of.

    Raises `UserError` where some of it may not be shipped, or nobody can tell: a base or a source that is not in the
    table, a source for measurements only, a teacher, conversations that the prepared data do not hold.
    """
    manifest, base = judge.manifest, judge.manifest.config["model"]["base"]
    if base not in bases:
        raise UserError(f"{judge.folder} was trained from {base}, whose licence is not in {TABLE}: enter it in BASES")
    teachers = [name for name in manifest.parents if Path(name).parts[0] != "data"]
    if teachers:
        raise UserError(
            f"{judge.folder} learned from {', '.join(teachers)}, whose terms nobody has checked: ship a judge of votes "
            "alone (loss=votes)"
        )
    (data,) = manifest.parents
    prepared = read_manifest(root / data, "prepare", "prepare the data that the judge was trained on")
    if changed_parents(manifest, root):
        raise UserError(f"{root / data} is not what {judge.folder} was trained on: train it again")
    own = judge.learned()
    learned = own | read_learned(export)
    seen = learned.directly | learned.through_teachers
    rows = [c for c in load_conversations(root / data) if c.fingerprint() in seen]
    if unknown := seen - {c.fingerprint() for c in rows}:
        raise UserError(
            f"{judge.folder} learned from {len(unknown):,} conversations that {root / data} does not hold, so nobody "
            "can tell whether it may be shipped"
        )
    found = known(judge.folder, prepared.config["inputs"], Counter(c.source for c in rows), sources)
    canaries = {*read_parquet(export / CANARIES)["id"]}
    parts = []
    for name, source in found.items():
        of_source = [c for c in rows if c.source == name]
        learned_from = sum(c.fingerprint() in own.directly for c in of_source)
        parts.append(Part(source, learned_from, sum(c.id in canaries for c in of_source)))
    return Origins(bases[base], data, parts)


def known(
    judge: Path, inputs: Mapping[str, Mapping[str, str]], rows: Mapping[str, int], sources: Mapping[str, Source]
) -> dict[str, Source]:
    """The row of the table for each source in `rows`, {name: conversations}, by the content of its file.

    `inputs`: what the prepared data say of their files. Raises `UserError` for a source without a row there, and for
    one that is for measurements only.
    """
    by_digest = {source.digest: source for source in sources.values()}
    found = {}
    for name, count in rows.items():
        source = by_digest.get(inputs.get(name, {}).get("sha256", ""))
        if source is None:
            raise UserError(
                f"{judge} learned from {count:,} conversations of {name}, a file that is not in {TABLE}, so nobody can "
                "tell whether they may be shipped"
            )
        if not source.shippable:
            raise UserError(
                f"{judge} learned from {count:,} conversations of {source.name}, which are for measurements only "
                f"(licence: {source.licence}): train it without them, as +exp=judge_human does"
            )
        found[name] = source
    return found


def check_no_machine_paths(folder: Path) -> None:
    """Raise `UserError` where a JSON file below `folder` holds an absolute path: it means nothing elsewhere."""
    for path in sorted(folder.rglob("*.json")):
        if found := MACHINE_PATH.search(path.read_text()):
            raise UserError(
                f"{path.relative_to(folder)} holds a path of this machine, {found[0]}: train and export with relative "
                "paths, from the repository's root"
            )
