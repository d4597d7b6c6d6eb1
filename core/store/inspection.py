"""What a look into a store shows, and everything that may be wrong with it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from rich.table import Column, Table

from core.artefacts.contents import MANIFEST, content_hash
from core.artefacts.manifest import COMPACTING, read_manifest
from core.errors import UserError
from core.labels import Labels, among, labels_of
from core.records import LABELS
from core.store.leaks import NAMED, check_leaks
from core.store.parts import Part, list_parts, open_part, part_files, token
from core.store.reading import double_keys, mixed_parts, read_parts
from core.store.rows import key, view
from core.store.seen import read_seen


def inspect(folder: Path) -> list[Table]:
    """Tables of what made the store, what its rows are like, and how many each judge gave. Rows are checked first."""
    rows, parts = read_parts(folder), list_parts(folder)
    what, side = Table("made by", Column(overflow="fold"), title=str(folder)), view(rows.columns)
    for name, value in parts[0].origin.identity.items():
        what.add_row(name, value)
    for fold, judge in {part.origin.writer: part.origin.judge for part in parts}.items():
        what.add_row(f"judge of fold {token(fold)}", judge)
    like = Table("rows", f"{len(rows):,}")
    for name, told in {**files(folder, parts, len(rows)), **facts(rows, labels_so_far(folder))}.items():
        like.add_row(name, told)
    counts = Table("judge's fold", side, "rows")
    for fold, shown, count in rows.group_by("judge_fold", side).len().sort("judge_fold", side).iter_rows():
        counts.add_row(token(fold), shown, f"{count:,}")
    return [what, like, counts]


def files(folder: Path, parts: Sequence[Part], rows: int) -> dict[str, str]:
    """How the rows lie on disk."""
    taken = sum(part.path.stat().st_size for part in parts)
    finished = (folder / MANIFEST).exists()
    return {
        "finished": f"yes, {read_manifest(folder, verify=False).created}"
        if finished
        else "no: it has no manifest.json",
        "parts": f"{len(parts):,}",
        "bytes": f"{taken:,}, {taken / rows:.1f} a row",
    }


def labels_so_far(folder: Path) -> Labels:
    """The labels that a store's judges know; all of them until it is finished, which is when they are noted."""
    return labels_of(read_manifest(folder, verify=False)) if (folder / MANIFEST).exists() else LABELS


def facts(rows: pl.DataFrame, labels: Labels) -> dict[str, str]:
    """What judges, prompts and verdicts for `labels` are like, in words."""
    tokens = rows["prompt_tokens"].to_numpy()
    told = {
        "ids": f"{rows['id'].n_unique():,}",
        "prompt tokens": f"{tokens.sum():,}; median {np.median(tokens):,.0f}, most {tokens.max():,}",
        "truncated": f"{rows['truncated'].to_numpy().mean():.2%}",
    }
    if "rewards" in rows.columns:
        return told | {"rewards a response": ", ".join(map(str, rows["rewards"].list.len().unique().sort()))}
    told["in sample"] = f"{rows['in_sample'].to_numpy().mean():.2%}"
    logits = among(rows["logits"].to_numpy().astype(np.float64), labels)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = shifted / shifted.sum(axis=1, keepdims=True)
    entropy = -(p * np.log(np.maximum(p, np.finfo(float).tiny))).sum(axis=1)
    verdicts = rows.select("id", "judge_fold", verdict=logits.argmax(axis=1).astype(np.int8))
    changes = verdicts.group_by("id", "judge_fold").agg(pl.col("verdict").min() != pl.col("verdict").max())
    changed = changes.group_by("id").agg(pl.col("verdict").any())["verdict"].to_numpy()
    told["mean entropy"] = f"{entropy.mean():.3f} nats"
    told["verdict changes with the order"] = f"{changed.mean():.2%} of ids"
    outside = rows["outside"].drop_nulls().to_numpy()
    if len(outside):
        told["mass outside the labels"] = f"median {np.median(outside):.3g}, most {outside.max():.3g}"
    return told


def verify(folder: Path) -> list[str]:
    """Every problem of a store, each as one sentence; none for a store that every reader takes."""
    problems: list[str] = []
    parts: list[Part] = []
    for path in part_files(folder):
        try:
            parts.append(open_part(path))
        except UserError as error:
            problems.append(str(error))
    replaced = {name for part in parts for name in part.replaces}
    parts = sorted((p for p in parts if p.path.name not in replaced), key=lambda p: (p.origin.writer, p.number))
    problems += mixed_parts(parts)
    tables = []
    for part in parts:
        try:
            rows = part.checked()
            if part.origin.columns == parts[0].origin.columns:  # else it is among the mixed ones
                tables.append(rows)
        except UserError as error:
            problems.append(str(error))
    if tables:
        problems += row_problems(folder, pl.concat(tables, rechunk=False))
    elif not problems:
        problems.append(f"{folder} holds no parts: run the teacher stage, or check the path")
    manifest = read_manifest(folder, verify=False) if (folder / MANIFEST).exists() else None
    if manifest and COMPACTING in manifest.extra:
        problems.append(f"a compaction was interrupted: resume it with python -m distill.store compact {folder}")
    elif manifest and content_hash(folder) != manifest.content:
        problems.append(
            f"{folder} does not hold the files that its manifest.json was written for: something was changed, added or "
            "removed since; score anew with overwrite=true"
        )
    return problems


def row_problems(folder: Path, rows: pl.DataFrame) -> list[str]:
    """What is wrong with rows that are as they were written."""
    side, values = view(rows.columns), "logits" if "logits" in rows.columns else "rewards"
    problems = [double] if (double := double_keys(rows)) else []

    def report(what: str, offending: pl.DataFrame) -> None:
        if len(offending):
            named = (
                offending.select(c for c in key(rows.columns) if c in offending.columns)
                .sort(pl.all())
                .head(NAMED)
                .rows()
            )
            problems.append(f"{len(offending):,} {what}, such as {named}: score anew with overwrite=true")

    flat = rows[values].explode(empty_as_null=True, keep_nulls=True)
    if not flat.is_finite().all():
        finite = pl.col(values).cast(pl.List(pl.Float32)).list.eval(pl.element().is_finite()).list.all()
        report(f"rows have {values} that are not finite", rows.filter(~finite))
    judged = rows.group_by("id", "judge_fold").agg(
        pl.len(), least=pl.col("fingerprint").min(), most=pl.col("fingerprint").max()
    )
    report(f"judgements lack one {side} of the two", judged.filter(pl.col("len") < 2))
    report("ids were scored for two different texts", judged.filter(pl.col("least") != pl.col("most")))
    if "in_sample" in rows.columns:
        try:
            check_leaks(rows, read_seen(folder, rows["judge_fold"].unique()))
        except UserError as error:
            problems.append(str(error))
    return problems


def size(folder: Path) -> int:
    """Bytes of all parquet files."""
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))
