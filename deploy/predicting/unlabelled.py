"""The rows of a file that nobody voted on: those for the judge, those for the rules, and those that cannot be read.

The stages before drop duplicates and reject rows that they cannot read. A submission needs a line for each: a row that
is no conversation gets the prior, and a kind of rows of which people's votes are known (`predict.rules`) gets these.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from core.data.collecting import REJECTED
from core.data.columns import BALLOTS, COUNTS, FOREIGN_VOTES, REQUIRED, WINNERS
from core.data.config import DataConfig
from core.data.files.opening import open_sources
from core.data.files.rows import Row
from core.data.parsing import BadRow, identify, parse
from core.errors import UserError
from core.records import Conversation, swap_labels
from deploy.predicting.config import RulesConfig

NAMED = 5  # how many offending rows a message names


@dataclass(frozen=True)
class Unlabelled:
    """The rows to predict: all `ids` in order, the `conversations` that a judge reads, `ruled` ids with what the rules
    say, and the `unreadable` rest (`REJECTED`). `identity` changes when the file does.
    """

    ids: list[str]
    conversations: list[Conversation]
    ruled: dict[str, Sequence[float]]
    unreadable: pl.DataFrame
    identity: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The file `path` to predict, read as `data` says, up to `limit` rows of it. `rules`: rows that no judge needs."""

    path: str | None
    data: DataConfig
    limit: int | None
    rules: RulesConfig


def read_unlabelled(file: Source) -> Unlabelled:
    """The rows of a file, their votes left aside.

    Raises `UserError` where it is no such file, where a row has no id and where two have the same.
    """
    if file.path is None or not Path(file.path).is_file():
        raise UserError(
            f"input={file.path}: no such file; give a CSV, parquet or JSONL file with the columns {list(REQUIRED)}"
        )
    ignored = [*file.data.ignore_columns, *WINNERS, *COUNTS, BALLOTS, *FOREIGN_VOTES]
    data = replace(file.data, files=[file.path], hub=None, simulate=None, ignore_columns=ignored)
    (source,) = open_sources(data)
    ids: list[str] = []
    conversations: list[Conversation] = []
    ruled: dict[str, Sequence[float]] = {}
    unreadable: list[tuple[str, int, str, str]] = []
    for row in islice(source.rows(), file.limit):
        ids.append(read_id(row, file.path))
        try:
            conversation = parse(row, source)
        except BadRow as problem:
            unreadable.append((source.name, row.line, ids[-1], str(problem)))
            continue
        rule = apply_rules(conversation, file.rules)
        if rule is None:
            conversations.append(replace(conversation, id=ids[-1]))
        else:
            ruled[ids[-1]] = rule
    if double := [name for name, times in Counter(ids).items() if times > 1]:
        raise UserError(
            f"{file.path}: {len(double)} ids occur more than once, such as {double[:NAMED]}: "
            "a submission has one line for each id, so make them unique"
        )
    return Unlabelled(
        ids, conversations, ruled, pl.DataFrame(unreadable, schema=REJECTED, orient="row"), source.identity
    )


def read_id(row: Row, path: str) -> str:
    """A row's id (see `identify`). Raises `UserError` where it has none: no line could stand for it."""
    try:
        return identify(row.cells)
    except BadRow as problem:
        reason = row.problem if "id" not in row.cells and row.problem else problem
        raise UserError(
            f"{path}, row {row.line}: {reason}. A submission has a line for each id: give this row one, in UTF-8"
        ) from None


def apply_rules(conversation: Conversation, rules: RulesConfig) -> Sequence[float] | None:
    """What people vote for a conversation of this kind, in the order of `LABELS`; None: that is for the judge to say.

    Spacing does not count. Where both responses are empty, the judge decides.
    """
    a, b = ([text.split() for text in side] for side in (conversation.response_a, conversation.response_b))
    if not any(a) and not any(b):
        return None
    if not any(a) or not any(b):
        empty_first = rules.one_empty
        return empty_first if empty_first is None or any(b) else swap_labels(empty_first)
    return rules.identical if a == b else None
