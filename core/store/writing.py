"""Adding rows to a store: one writer a judge's fold or process, which knows by key what is done already."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import polars as pl

from core.errors import UserError
from core.store.parts import NO_FOLD, Origin, columns_of, explained, locked, part_path, publish, tidy
from core.store.rows import LOGITS, key, writer_column


class StoreWriter:
    """Appends the rows of one judge to `folder`: a context manager that holds the writer's lock.

    `identity` is what all parts of a store share (prompt hash, dtype, method). `writer` is the judge's fold, or one of
    the processes that share a judge's work; `judge` tells its judge from any other. Inside, `done` has the key and the
    fingerprint of every row that this writer has. Entering raises `UserError` where another process has the lock, and
    where the folder holds parts that were made differently, foreign parquet files, or damaged ones.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        judge: str,
        writer: int = NO_FOLD,
        schema: pl.Schema = LOGITS,
    ):
        assert not {"columns", "judge"} & set(identity), identity
        self.folder, self.schema = folder, schema
        self.origin = Origin(dict(identity), judge, writer, columns_of(schema))
        self.done = pl.DataFrame(schema=schema).select(*key(schema), "fingerprint")
        self._next = 0
        self._held: ExitStack | None = None

    def __enter__(self) -> Self:
        fold = self.origin.writer
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
            own = [part for part in parts if part.origin.writer == fold]
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
        writers = rows[writer_column(self.schema)]
        assert (writers == self.origin.writer).all(), writers.unique()
        assert not sum(rows.drop("outside", strict=False).null_count().row(0)), rows.null_count()
        path = part_path(self.folder, self.origin.writer, self._next)
        publish(rows, path, self.origin.metadata())
        self._next += 1
        self.done = pl.concat([self.done, rows.select(self.done.columns)], rechunk=False)
        return path
