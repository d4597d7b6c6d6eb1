"""Reads a file of stored opinions: the numbers that it has for each conversation, or for each response."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.files.reading import open_table
from core.data.files.rows import Row, Source, shown
from core.data.layouts.layout import named, number
from core.data.layouts.scored import PROMPT, RESPONSE, SCORE, holds_log_odds
from core.errors import UserError
from core.labels import WITHOUT_TIES, Labels
from core.records import ORDERS, Conversation, Order
from teachers.stored.columns import ADVICE, Columns, Quantity, columns_of
from teachers.stored.joining import PAIR, Join, check_covered, readable

log = logging.getLogger(__name__)
ORDER = "order"  # the column that tells in which order a row's responses were shown
Values = list[float]  # of a, b and, where there is one, tie


@dataclass(frozen=True)
class Opinions:
    """What a file says of conversations, by id: numbers of its `columns` by order; None: it tells of none.

    `lines`: where it stands; `folds`: the fold that a row's judge did not learn from, None where it learned from all.
    """

    columns: Columns
    values: Mapping[str, Mapping[Order | None, Values]]
    lines: Mapping[str, int]
    folds: Mapping[str, int | None]


def open_file(path: str) -> Source:
    """The table at `path`. Raises `UserError` where it cannot be read."""
    if not Path(path).is_file():
        raise UserError(f"teacher.stored.file={path}: no such file; give a table in a format of docs/data.md")
    problems: list[str] = []
    source = open_table([Path(path)], "stored", problems)
    if source is None:
        raise UserError("; ".join(problems))
    if len({*source.columns}) < len(source.columns):
        raise UserError(f"{path}: column names occur twice: {source.columns}; rename one of each")
    return source


def read_opinions(source: Source, conversations: Sequence[Conversation], folds: str | None) -> Opinions:
    """What a file of pairs says of each conversation; `folds`: its column of folds.

    Raises `UserError` for rows that cannot be read, a pair that comes twice, and conversations without an opinion.
    """
    columns = columns_of([name for name in source.columns if name != folds], source.where)
    if columns is None:
        raise UserError(f"{source.where} has no columns of opinions, only {source.columns}: {ADVICE}")
    if folds is not None and folds not in source.columns:
        raise UserError(
            f"teacher.stored.learned_from={folds}: {source.where} has no such column, only {source.columns}"
        )
    join = Join.of_pairs(source)
    wanted: dict[str, list[Conversation]] = {}
    for c in conversations:
        wanted.setdefault(join.of(c), []).append(c)
    values: dict[str, dict[Order | None, Values]] = {}
    lines: dict[str, int] = {}
    of_folds: dict[str, int | None] = {}
    others: dict[str, int] = {}
    for row in readable(source):
        key = join.key(row)
        for c in wanted.get(key, ()):
            name, said = c.id, said_in(row, columns, source.where, exchanged=join.is_exchanged(row, c))
            own = values.setdefault(name, {})
            if own.keys() & said.keys():
                raise UserError(
                    f"{source.where}, row {row.line}: {name} is in row {lines[name]} already; leave one out"
                )
            own |= said
            lines[name] = row.line
            of_folds[name] = None if folds is None else fold_in(row, folds, source.where)
        if key not in wanted:
            others[key] = row.line
    check_covered([c.id for c in conversations], values, source.where, others)
    told = "a hash of the texts" if join.id is None else join.id
    log.info("%s: %s by %s of %d conversations", source.where, columns.quantity, told, len(values))
    if others:
        log.info("%s: %d rows are of no conversation in the data", source.where, len(others))
    return Opinions(columns, values, lines, of_folds)


def read_scores(source: Source, conversations: Sequence[Conversation], labels: Labels, folds: str | None) -> Opinions:
    """The scores of responses a and b of each conversation, from rows of single responses.

    A response that several rows score has their mean. A column called `*_logit` holds log-odds against some opponent.
    The difference of two is then a pair's logit, by Bradley and Terry's model, where `labels` have no tie.
    Raises `UserError` as `read_opinions` does, and for a column of `folds`: a response is in pairs of several.
    """
    if folds is not None:
        raise UserError(
            f"teacher.stored.learned_from={folds}: {source.where} holds single responses, which are in no fold: say "
            "none or unknown"
        )
    prompt, response, score = (named(names, source.columns) or "" for names in (PROMPT, RESPONSE, SCORE))
    join = Join.by_texts(source, (prompt, response))
    scores: dict[str, list[float]] = {}
    lines: dict[str, int] = {}
    for row in readable(source):
        key = join.key(row)
        scores.setdefault(key, []).append(finite(row, score, source.where))
        lines[key] = row.line
    keys = {c.id: [join.of_texts(c.prompt, r) for r in (c.response_a, c.response_b)] for c in conversations}
    known = [name for name, (a, b) in keys.items() if a in scores and b in scores]
    check_covered([*keys], {*known}, source.where, ())
    quantity = quantity_of_scores(holds_log_odds(source.columns), labels)
    told = "log-odds, whose differences are the logits" if quantity == "logits" else "scores"
    log.info("%s: %s of %d responses, by a hash of the texts: %s", source.where, score, len(scores), told)
    values: dict[str, Mapping[Order | None, Values]] = {
        name: {None: [float(np.mean(scores[key])) for key in both]} for name, both in keys.items()
    }
    columns = Columns(quantity, {None: [score, score]})
    places = {name: lines[a if not np.isfinite(scores[a]).all() else b] for name, (a, b) in keys.items()}
    return Opinions(columns, values, places, dict.fromkeys(keys))


def scores_of_data(
    conversations: Sequence[Conversation], log_odds: bool, labels: Labels, folds: str | None
) -> Opinions:
    """The scores in the data, which are `log_odds` or not; as `read_scores` has them.

    Raises `UserError` where a conversation has none, and for a column of `folds`.
    """
    if folds is not None:
        raise UserError(
            f"teacher.stored.learned_from={folds}: the scores in the data are of single responses, which are in no "
            "fold: say none or unknown"
        )
    values: dict[str, Mapping[Order | None, Values]] = {
        c.id: {None: [c.score_a, c.score_b]} for c in conversations if c.score_a is not None and c.score_b is not None
    }
    if lacking := [c.id for c in conversations if c.id not in values]:
        raise UserError(
            f"teacher.stored.file=null: {len(lacking)} of {len(conversations)} conversations of the data have no "
            f"scores, such as {lacking[:3]}; name the file with the opinions"
        )
    columns = Columns(quantity_of_scores(log_odds, labels), {None: ["score_a", "score_b"]})
    return Opinions(columns, values, {c.id: row for row, c in enumerate(conversations, 1)}, dict.fromkeys(values))


def quantity_of_scores(log_odds: bool, labels: Labels) -> Quantity:
    """Log-odds against some opponent are logits where nobody could vote for a tie; of ties they say nothing."""
    return "logits" if log_odds and labels == WITHOUT_TIES else "scores"


def holds_responses(source: Source) -> bool:
    """Whether each row is one response with its score."""
    return all(named(n, source.columns) for n in (PROMPT, RESPONSE, SCORE)) and not {*PAIR} <= {*source.columns}


def said_in(row: Row, columns: Columns, where: str, exchanged: bool) -> dict[Order | None, Values]:
    """The numbers in a row by order; `exchanged`: the conversation has its a and b the other way round."""
    told = row.cells.get(ORDER) if ORDER in row.cells and [*columns.of] == [None] else None
    if told is not None and told not in ORDERS:
        raise UserError(f"{where}, row {row.line}: {ORDER} is {shown(told)}: write {' or '.join(ORDERS)}")
    found: dict[Order | None, Values] = {}
    for order, names in columns.of.items():
        values = [finite(row, name, where) for name in names]
        order = order or told
        if exchanged:
            values[0], values[1] = values[1], values[0]
            order = None if order is None else ORDERS[1 - ORDERS.index(order)]
        found[order] = values
    return found


def finite(row: Row, name: str, where: str) -> float:
    """The number in a cell; minus infinity may stand for the logarithm of nothing. Raises `UserError` for none."""
    value = number(row.cells.get(name))
    if math.isnan(value) or value == math.inf:
        raise UserError(
            f"{where}, row {row.line}: {name} is no finite number: {shown(row.cells.get(name))}; mend it, or leave "
            "the row out"
        )
    return value


def fold_in(row: Row, name: str, where: str) -> int | None:
    """The fold in a cell; None for an empty one."""
    cell: Any = row.cells.get(name)
    if cell is None or cell == "":
        return None
    value = number(cell)
    if not value.is_integer() or value < 0:
        raise UserError(f"{where}, row {row.line}: {name} is no fold: {shown(cell)}; write 0, 1, ..., or nothing")
    return int(value)
