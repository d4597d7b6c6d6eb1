"""All sources as one table: no row twice, and nothing lost on the way.

rows read == conversations + duplicates + rejected rows
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import polars as pl

from core.data.columns import MODELS, TEXTS
from core.data.files.rows import ROWS_AT_ONCE, Source, shown
from core.data.parsing import BadRow, clean, parse
from core.data.table import SCHEMA, to_frame
from core.errors import UserError
from core.records import Conversation

REJECTED = pl.Schema({"source": pl.String, "line": pl.Int64, "id": pl.String, "reason": pl.String})
PAIR = (*TEXTS, *MODELS)
SEVERAL = 3  # how many kinds of problems a message names


@dataclass
class Tally:
    """What became of one source's rows."""

    source: str
    read: int = 0
    kept: int = 0
    duplicates: int = 0
    rejected: int = 0


def collect(
    sources: Sequence[Source], limit: int | None, shuffle_sides: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame, list[Tally]]:
    """Read all sources: conversations (in `SCHEMA`, without folds), rejected rows (in `REJECTED`), each source's tally.

    `limit` keeps the first rows of each source. A row that equals an earlier one in all columns but the id is dropped.
    Ids stay as they are where there is one source and become `source/id` where there are several. The sources in
    `shuffle_sides` get their sides exchanged where the hash of source and id is odd. Raises `UserError` for a name
    there that is no source.
    """
    names = [source.name for source in sources]
    if unknown := [name for name in shuffle_sides if name not in names]:
        raise UserError(f"data.shuffle_sides={unknown}: no such source; choose from {names}")
    seen: set[bytes] = set()
    taken: set[str] = set()
    frames: list[pl.DataFrame] = [pl.DataFrame(schema=SCHEMA)]
    rejected: list[tuple[str, int, str | None, str]] = []
    tallies = [Tally(name) for name in names]
    for source, tally in zip(sources, tallies, strict=True):
        kept: list[Conversation] = []
        for row in islice(source.rows(), limit):
            tally.read += 1
            try:
                conversation = parse(row, source)
                content = _content(conversation, row.cells)
                if content in seen:
                    tally.duplicates += 1
                    continue
                if source.name in shuffle_sides and is_swapped(conversation):
                    conversation = conversation.swap()
                if len(sources) > 1:
                    conversation = replace(conversation, id=f"{source.name}/{conversation.id}")
                if conversation.id in taken:
                    raise BadRow(f"duplicate id with other content: {shown(conversation.id)}")
            except BadRow as problem:
                tally.rejected += 1
                identity = row.cells.get("id")
                shown_id = None if identity is None else clean(str(identity))
                rejected.append((source.name, row.line, shown_id, str(problem)))
                continue
            seen.add(content)
            taken.add(conversation.id)
            tally.kept += 1
            kept.append(conversation)
            if len(kept) == ROWS_AT_ONCE:  # texts take far less memory in a table than as Python objects
                frames.append(to_frame(kept))
                kept = []
        frames.append(to_frame(kept))
        assert tally.read == tally.kept + tally.duplicates + tally.rejected, tally
    return pl.concat(frames), pl.DataFrame(rejected, schema=REJECTED, orient="row"), tallies


def kinds(rejected: pl.DataFrame) -> str:
    """Why rows of a table in `REJECTED` were rejected, the commonest first, as in `398 x prompt is not JSON`."""
    counts = Counter(reason.split(": ")[0] for reason in rejected["reason"])
    return ", ".join(f"{count:,} x {kind}" for kind, count in counts.most_common(SEVERAL))


def is_swapped(conversation: Conversation) -> bool:
    """A coin that falls the same way for the same source and id, in every run and whatever else is read."""
    return hashlib.sha256(f"{conversation.source}/{conversation.id}".encode()).digest()[-1] % 2 == 1


def _content(conversation: Conversation, cells: Mapping[str, Any]) -> bytes:
    """Hash of all columns but the id, ignored ones too: a pair that somebody else judges again is no duplicate."""
    pair = [getattr(conversation, name) for name in PAIR]
    others = sorted((name, str(cell)) for name, cell in cells.items() if name not in ("id", *PAIR))
    return hashlib.sha256(json.dumps([pair, others]).encode()).digest()
