"""The rows of a file that nobody voted on: those for the judge, those for the rules, and those that cannot be read.

The stages before drop duplicates and reject rows that they cannot read. A submission needs a line for each: a row that
is no conversation gets the prior, and a kind of rows of which people's votes are known (`predict.rules`) gets these.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from core.data.collecting import REJECTED
from core.data.config import DataConfig
from core.data.files.rows import Row
from core.data.layouts.layout import IDS, BadRow, Found, Rejected, identify
from core.data.sources import open_recognised
from core.errors import UserError
from core.records import Conversation, swap_labels
from deploy.predicting.config import RulesConfig

NAMED = 5  # how many offending rows a message names


@dataclass(frozen=True)
class Unlabelled:
    """The rows to predict: all `ids` in order, the `conversations` that a judge reads, `ruled` ids with what the rules
    say, and the `unreadable` rest (`REJECTED`). `identity` changes when the file does. `id_column` is None where the
    file has none: ids are then hashes of the texts.
    """

    ids: list[str]
    conversations: list[Conversation]
    ruled: dict[str, Sequence[float]]
    unreadable: pl.DataFrame
    identity: dict[str, Any]
    id_column: str | None


@dataclass(frozen=True)
class Source:
    """The file `path` to predict, read as `data` says, up to `limit` rows of it. `rules`: rows that no judge needs."""

    path: str | None
    data: DataConfig
    limit: int | None
    rules: RulesConfig


def read_unlabelled(file: Source) -> Unlabelled:
    """The rows of a file, their votes left aside.

    An id is a line of the submission. A row of several responses has a line for each pair of them. Raises `UserError`
    where it is no such file, where a row has no id though the file has a column of them, and where two have the same.
    """
    if file.path is None or not Path(file.path).is_file():
        raise UserError(f"input={file.path}: no such file; give one in a format and a layout of docs/data.md")
    data = replace(file.data, files=[file.path], hub=None, simulate=None)
    (source,) = open_recognised(data, with_votes=False)
    ids: list[str] = []
    conversations: list[Conversation] = []
    ruled: dict[str, Sequence[float]] = {}
    unreadable: list[tuple[str, int, str | None, str]] = []
    column = source.reading.named(IDS)
    rows = map(partial(checked_id, file.path, column), source.rows(file.limit))
    for outcome in source.layout.read(rows, source.reading):
        if isinstance(outcome, Rejected):
            unreadable.append((source.name, *outcome))
            ids += [outcome.id] if outcome.id is not None else []
        if not isinstance(outcome, Found):
            continue
        conversation = outcome.conversation
        ids.append(conversation.id)
        rule = apply_rules(conversation, file.rules)
        if rule is None:
            conversations.append(conversation)
        else:
            ruled[conversation.id] = rule
    if double := [name for name, times in Counter(ids).items() if times > 1]:
        raise UserError(
            f"{file.path}: {len(double)} ids occur more than once, such as {double[:NAMED]}: "
            "a submission has one line for each id, so make them unique"
        )
    return Unlabelled(
        ids,
        conversations,
        ruled,
        pl.DataFrame(unreadable, schema=REJECTED, orient="row"),
        source.source.identity,
        column,
    )


def checked_id(path: str, column: str | None, row: Row) -> Row:
    """The row. Raises `UserError` where it has no id (see `identify`) in its `column`: no line could stand for it."""
    try:
        if column is not None:
            identify(row.cells, column)
    except BadRow as problem:
        reason = row.problem if column not in row.cells and row.problem else problem
        raise UserError(
            f"{path}, row {row.line}: {reason}. A submission has a line for each id: give this row one, in UTF-8"
        ) from None
    return row


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
