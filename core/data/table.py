"""The conversations table: how the records lie in parquet, and a prepared data set as records again."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from core.artefacts.manifest import read_manifest
from core.errors import UserError
from core.records import Conversation
from core.tables import read_parquet

CONVERSATIONS = "conversations.parquet"
SCHEMA = pl.Schema(
    {
        "id": pl.String(),
        "prompt": pl.List(pl.String),
        "response_a": pl.List(pl.String),
        "response_b": pl.List(pl.String),
        "model_a": pl.String(),
        "model_b": pl.String(),
        "votes": pl.List(pl.Float64),
        "group": pl.String(),
        "fold": pl.Int32(),
        "source": pl.String(),
        "score_a": pl.Float64(),
        "score_b": pl.Float64(),
        "tags": pl.List(pl.Struct({"name": pl.String, "value": pl.String})),
    }
)
LATER = ("score_a", "score_b", "tags")  # what tables of earlier versions lack


def to_frame(conversations: Sequence[Conversation]) -> pl.DataFrame:
    """A table in `SCHEMA`, one row a conversation, in the given order."""
    columns = {name: [getattr(c, name) for c in conversations] for name in SCHEMA if name != "tags"}
    columns["tags"] = [[{"name": name, "value": value} for name, value in c.tags.items()] for c in conversations]
    schema = pl.DataFrame(schema=SCHEMA).to_arrow().schema
    return pl.DataFrame(pa.table(columns, schema=schema))  # polars itself would make a column of every single list


def from_frame(frame: pl.DataFrame) -> list[Conversation]:
    """The conversations of a table in `SCHEMA`, or of an earlier version's (`LATER`).

    Raises `UserError` naming the columns that differ.
    """
    frame = frame.with_columns(pl.lit(None, SCHEMA[name]).alias(name) for name in LATER if name not in frame.columns)
    if frame.schema != SCHEMA:
        wrong = {name: str(kind) for name, kind in frame.schema.items() if SCHEMA.get(name) != kind}
        missing = [name for name in SCHEMA if name not in frame.schema]
        raise UserError(f"not a conversations table: unexpected columns {wrong}, missing columns {missing}")
    rows = frame.select(*SCHEMA).iter_rows(named=True)
    return [Conversation(**row | {"tags": {t["name"]: t["value"] for t in row["tags"] or ()}}) for row in rows]


def save_conversations(folder: Path, conversations: pl.DataFrame) -> None:
    """Write the table, which has to be in `SCHEMA`; the manifest that completes it is the stage's to write."""
    assert conversations.schema == SCHEMA, conversations.schema
    conversations.write_parquet(folder / CONVERSATIONS)


def load_conversations(folder: Path) -> list[Conversation]:
    """The conversations of a finished `data/<name>`, in input order. Raises `UserError` naming the command for it."""
    read_manifest(folder, "prepare", remedy=f"python -m distill.prepare data={folder.name}")
    return from_frame(read_parquet(folder / CONVERSATIONS))
