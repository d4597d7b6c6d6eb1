"""The soft-logits store: what its rows are, who adds to them, and what every reader may rely on.

    python -m distill.store inspect|verify|compact PATH

A run that goes on after a kill adds only to parts of its own making and knows by key what is done; a reader notices
one flipped bit. Beside the parts lies what each judge learned from (`seen-<fold>.parquet`), against which the
`in_sample` of every row is checked: a leak is found by what the judge saw, not by what the row claims.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import polars as pl

from core.artefacts.manifest import read_manifest
from core.errors import UserError
from core.provenance import LEARNED, Learned
from core.scoring import SCORES
from core.store.parts import (
    NO_FOLD,
    Origin,
    Part,
    columns_of,
    content_digest,
    explained,
    list_parts,
    locked,
    part_path,
    publish,
    read_checked,
    tidy,
    token,
)

__all__ = [
    *("LOGITS", "NO_FOLD", "REWARDS", "StoreWriter", "check_leaks"),
    *("learned_by_judges", "read_logits", "read_parts", "read_seen", "write_seen"),
]

LOGITS = pl.Schema(
    {
        **SCORES,
        "judge_fold": pl.Int32(),
        "in_sample": pl.Boolean(),
        "fingerprint": pl.UInt64(),  # Conversation.sided_fingerprint(): the texts that the row was scored for
        "outside": pl.Float32(),  # probability mass that `label_tokens` found outside the labels; null for score heads
    }
)
REWARDS = pl.Schema(
    {
        "id": pl.String(),
        "response": pl.String(),
        "rewards": pl.List(pl.Float32),
        "prompt_tokens": pl.Int32(),
        "truncated": pl.Boolean(),
        "judge_fold": pl.Int32(),
        "fingerprint": pl.UInt64(),
    }
)
NAMED = 3  # how many offending rows a message names


class StoreWriter:
    """Appends the rows of one judge to `folder`: a context manager that holds the lock of the judge's fold.

    `identity` is what all parts of a store share (prompt hash, dtype, method); `judge` tells the judge of `judge_fold`
    from any other. Inside, `done` has the key and the fingerprint of every row that this fold has. Entering raises
    `UserError` where another process writes this fold, and where the folder holds parts that were made differently,
    foreign parquet files, or damaged ones.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        judge: str,
        judge_fold: int = NO_FOLD,
        schema: pl.Schema = LOGITS,
    ):
        assert not {"columns", "judge"} & set(identity), identity
        self.folder, self.schema = folder, schema
        self.origin = Origin(dict(identity), judge, judge_fold, columns_of(schema))
        self.done = pl.DataFrame(schema=schema).select(*key(schema), "fingerprint")
        self._next = 0
        self._held: ExitStack | None = None

    def __enter__(self) -> Self:
        fold = self.origin.judge_fold
        with ExitStack() as stack:
            with explained(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.folder, fold))
                parts = tidy(self.folder, fold)
            for part in parts:
                if differences := part.origin.differences(self.origin):
                    raise UserError(
                        f"{part.path} was made differently:\n"
                        + "\n".join(f"  - {name}: there {there!r}, now {now!r}" for name, there, now in differences)
                        + f"\n  choose another teacher.name, or replace the rows in {self.folder} with overwrite=true"
                    )
            own = [part for part in parts if part.origin.judge_fold == fold]
            self._next = max((part.number for part in own), default=-1) + 1
            empty = pl.DataFrame(schema=self.schema).select(self.done.columns)
            self.done = pl.concat([empty, *(part.read(self.done.columns) for part in own)])
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._held is not None
        self._held.close()
        self._held = None

    def append(self, rows: pl.DataFrame) -> Path:
        """Write `rows`, in the writer's schema and of its fold, as the next part: on disk when this returns.

        Raises `UserError` where the file system refuses; the parts before stay, and the next call may go on.
        """
        assert self._held is not None, "append() outside of the with block"
        assert rows.schema == self.schema, rows.schema
        assert (rows["judge_fold"] == self.origin.judge_fold).all(), rows["judge_fold"].unique()
        assert not sum(rows.drop("outside", strict=False).null_count().row(0)), rows.null_count()
        path = part_path(self.folder, self.origin.judge_fold, self._next)
        publish(rows, path, self.origin.metadata())
        self._next += 1
        self.done = pl.concat([self.done, rows.select(self.done.columns)], rechunk=False)
        return path


def key(schema: Iterable[str]) -> list[str]:
    """The columns by which the rows of a store are unique."""
    return ["id", view(schema), "judge_fold"]


def view(schema: Iterable[str]) -> str:
    """The column that tells apart the two rows of a conversation: which order, or which response, the judge saw."""
    return "order" if "order" in schema else "response"


def read_parts(folder: Path) -> pl.DataFrame:
    """All rows of a store, finished or not, in `LOGITS` or `REWARDS`.

    Raises `UserError` where a part is damaged, foreign or of another making than the rest, and where a key is double.
    """
    parts = list_parts(folder)
    if not parts:
        raise UserError(f"{folder} holds no parts: run the teacher stage, or check the path")
    if mixed := mixed_parts(parts):
        raise UserError(mixed[0])
    rows = pl.concat([part.checked() for part in parts], rechunk=False)
    if double := double_keys(rows):
        raise UserError(f"{folder}: {double}")
    return rows


def mixed_parts(parts: Sequence[Part]) -> list[str]:
    """What keeps `parts` from being one store: a sentence for each that was made differently from those before it."""
    problems, of_fold = [], dict[int, Part]()
    for part in parts:
        first = of_fold.setdefault(part.origin.judge_fold, part)
        for other in (parts[0], first):
            if differences := part.origin.differences(other.origin):
                told = "; ".join(f"{name}: {there!r}, but {now!r} there" for name, there, now in differences)
                problems.append(
                    f"{part.path} was made differently from {other.path.name} ({told}): move away the one that does "
                    "not belong here, or score anew with overwrite=true"
                )
                break
    return problems


def double_keys(rows: pl.DataFrame) -> str | None:
    """What is wrong where rows share a key, with some of the keys, or None."""
    keys = key(rows.columns)
    # Two rows of one conversation differ in a column of two values: ids within each are the smaller thing to compare.
    groups = rows.select(keys).partition_by(keys[1:])
    if all(group["id"].n_unique() == len(group) for group in groups):
        return None
    double = rows.select(keys).filter(pl.struct(keys).is_duplicated()).unique(maintain_order=True)
    return (
        f"{len(double)} keys ({', '.join(keys)}) have more than one row, such as {double.head(NAMED).rows()}: "
        "a part was copied, or two runs wrote at once; score anew with overwrite=true"
    )


def read_logits(folder: Path, remedy: str) -> pl.DataFrame:
    """All rows of a finished store, schema `LOGITS`, after the checks of `read_parts` and `check_leaks`.

    Raises `UserError` where it is missing or unfinished, with `remedy`, or where a check fails.
    """
    read_manifest(folder, "teacher", remedy)
    rows = read_parts(folder)
    if rows.schema != LOGITS:
        raise UserError(f"{folder} holds columns {rows.columns}, not soft logits: {remedy}")
    check_leaks(rows, read_seen(folder, rows["judge_fold"].unique()))
    return rows


def check_leaks(logits: pl.DataFrame, seen: pl.DataFrame) -> None:
    """Raise `UserError` unless `in_sample` is, row by row, whether the judge was trained on the row's fingerprint.

    `seen` is what `read_seen` gives; what a judge has of its teachers alone does not count here.
    """
    other_way_round = pl.col("fingerprint").xor(pl.lit(1, pl.UInt64))
    trained = [
        (pl.col("judge_fold") == fold)
        & pl.any_horizontal(
            texts.is_in(theirs["fingerprint"].implode()) for texts in (pl.col("fingerprint"), other_way_round)
        )
        for (fold,), theirs in seen.filter("directly").partition_by("judge_fold", as_dict=True).items()
    ]
    wrong = logits.filter(pl.col("in_sample").ne_missing(pl.any_horizontal(pl.lit(False), *trained)))
    wrong = wrong.select("id", "judge_fold", "in_sample").unique(maintain_order=True)
    if len(wrong):
        leaks = wrong.filter(~pl.col("in_sample"))
        told = ", ".join(
            f"{row['id']!r} by the judge of fold {token(row['judge_fold'])} "
            f"({'in_sample=true, but it was not trained on it' if row['in_sample'] else 'trained on it: a leak'})"
            for row in pl.concat([leaks, wrong.filter("in_sample")]).head(NAMED).iter_rows(named=True)
        )
        raise UserError(
            f"{len(wrong)} judgements do not say rightly whether their judge was trained on the conversation, "
            f"{len(leaks)} of them leaks: {told}; score the conversations again with overwrite=true"
        )


def write_seen(folder: Path, judge_fold: int, learned: Learned) -> None:
    """Note what the judge of `judge_fold` learned from: seen-<fold>.parquet, as `Learned.frame` has it."""
    rows = learned.frame()
    path = seen_path(folder, judge_fold)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() or content_digest(read_checked(path)) != content_digest(rows):
        publish(rows, path, {}, replace=True)


def read_seen(folder: Path, judge_folds: Iterable[int]) -> pl.DataFrame:
    """judge_fold, fingerprint, directly: what these judges learned from.

    Raises `UserError` where that is not known, or was noted by a version that did not know of teachers' teachers.
    """
    rows = [pl.DataFrame(schema={"judge_fold": pl.Int32, **LEARNED})]
    for fold in judge_folds:
        path = seen_path(folder, fold)
        if not path.exists():
            raise UserError(
                f"{path} is missing: without it nobody can tell what the judge of fold {token(fold)} learned from; "
                "run the teacher stage again with overwrite=true"
            )
        found = read_checked(path)
        if found.schema != LEARNED:
            raise UserError(
                f"{path} was written by an older version, which did not note what the judge's teachers learned from: "
                "run the teacher stage again with overwrite=true"
            )
        rows.append(found.select(pl.lit(fold, pl.Int32).alias("judge_fold"), *LEARNED))
    return pl.concat(rows)


def learned_by_judges(folder: Path, judge_folds: Iterable[int]) -> Learned:
    """What these judges of a store learned from, together."""
    return Learned.from_frame(read_seen(folder, judge_folds).select(LEARNED.names()).unique())


def seen_path(folder: Path, judge_fold: int) -> Path:
    return folder / f"seen-{token(judge_fold)}.parquet"
