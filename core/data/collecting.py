"""All sources as one table: no conversation twice, and nothing lost on the way.

Where each row is one conversation: rows read == conversations + duplicates + rejected rows.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from core.data.files.rows import ROWS_AT_ONCE, Row, shown
from core.data.layouts.layout import Rejected, Repeated
from core.data.layouts.recognising import Recognised
from core.data.table import SCHEMA, to_frame
from core.errors import UserError
from core.records import Conversation

REJECTED = pl.Schema({"source": pl.String, "line": pl.Int64, "id": pl.String, "reason": pl.String})
PAIR = ("prompt", "response_a", "response_b", "model_a", "model_b", "votes", "score_a", "score_b")
SEVERAL = 3  # how many kinds of problems a message names


@dataclass
class Tally:
    """What became of one source's rows, and the first conversation of its layout."""

    source: str
    read: int = 0
    kept: int = 0
    duplicates: int = 0
    rejected: int = 0
    example: Conversation | None = None


def collect(
    sources: Sequence[Recognised], limit: int | None, shuffle_sides: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame, list[Tally]]:
    """Read all sources: conversations (in `SCHEMA`, without folds), rejected rows (in `REJECTED`), each source's tally.

    `limit` keeps the first rows of each source. What equals an earlier conversation in all columns but the id is
    dropped. Ids stay as they are where there is one source and become `source/id` where there are several. Sources
    whose layout has no sides of its own get them exchanged where the hash of the id is odd, those in `shuffle_sides`
    where that of source and id is. Raises `UserError` for a name there that is no source.
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
        shuffled, kept = source.name in shuffle_sides or not source.layout.sided, list[Conversation]()
        for outcome in source.layout.read(_counted(source.rows(limit), tally), source.reading):
            if isinstance(outcome, Rejected):
                tally.rejected += 1
                rejected.append((source.name, *outcome))
                continue
            if isinstance(outcome, Repeated):
                tally.duplicates += 1
                continue
            conversation = outcome.conversation
            content = _content(conversation, outcome.cells, source.unneeded)
            if content in seen:
                tally.duplicates += 1
                continue
            if shuffled and is_swapped(conversation, source.layout.sided):
                conversation = conversation.swap()
            if len(sources) > 1:
                conversation = replace(conversation, id=f"{source.name}/{conversation.id}")
            if conversation.id in taken:
                tally.rejected += 1
                double = f"duplicate id with other content: {shown(conversation.id)}"
                rejected.append((source.name, outcome.line, outcome.conversation.id, double))
                continue
            seen.add(content)
            taken.add(conversation.id)
            tally.kept += 1
            tally.example = tally.example or conversation
            kept.append(conversation)
            if len(kept) == ROWS_AT_ONCE:  # texts take far less memory in a table than as Python objects
                frames.append(to_frame(kept))
                kept = []
        frames.append(to_frame(kept))
    return pl.concat(frames), pl.DataFrame(rejected, schema=REJECTED, orient="row"), tallies


def _counted(rows: Iterator[Row], tally: Tally) -> Iterator[Row]:
    for row in rows:
        tally.read += 1
        yield row


def kinds(rejected: pl.DataFrame) -> str:
    """Why rows of a table in `REJECTED` were rejected, the commonest first, as in `398 x prompt is not JSON`."""
    counts = Counter(reason.split(": ")[0] for reason in rejected["reason"])
    return ", ".join(f"{count:,} x {kind}" for kind, count in counts.most_common(SEVERAL))


def is_swapped(conversation: Conversation, by_source: bool = True) -> bool:
    """A coin that falls the same way for the same source and id, in every run and whatever else is read.

    Without `by_source` the id alone counts: a file and the hub's data set of the same content have other names.
    """
    tossed = f"{conversation.source}/{conversation.id}" if by_source else conversation.id
    return hashlib.sha256(tossed.encode()).digest()[-1] % 2 == 1


def _content(conversation: Conversation, cells: Mapping[str, Any], unneeded: Sequence[str]) -> bytes:
    """Hash of all columns but the id, unneeded ones too: a pair that somebody else judges again is no duplicate."""
    pair = [getattr(conversation, name) for name in PAIR]
    others = [(name, str(cells[name])) for name in sorted(unneeded) if name in cells]
    return hashlib.sha256(json.dumps([pair, sorted(conversation.tags.items()), others]).encode()).digest()
