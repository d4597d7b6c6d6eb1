"""One raw row as a conversation: its id, texts and votes, or why it is rejected."""

import json
import math
from collections.abc import Mapping
from typing import Any

from core.data.columns import BALLOTS, COUNTS, MODELS, TEXTS, WINNERS
from core.data.files.rows import SHOWN, SURROGATES, Row, Source, shown
from core.errors import UserError
from core.records import Conversation

BALLOT_DIGITS = "120"  # PandaLM: 1 for a, 2 for b, 0 for a tie
BOOLEANS = {"true": 1.0, "false": 0.0}  # as pandas writes them in a CSV


class BadRow(UserError):
    """Why a row is rejected: the kind of problem, a colon, and the offending value."""


def parse(row: Row, source: Source) -> Conversation:
    """The conversation of one raw row, without group and fold. Raises `BadRow`.

    Votes are `votes_a, votes_b, votes_tie`, else the digits in `votes`, else the one-hot winner columns, else None.
    """
    if row.problem is not None:
        raise BadRow(row.problem)
    cells = {name: row.cells.get(name) for name in source.columns}
    prompt, response_a, response_b = (_turns(name, cells[name]) for name in TEXTS)
    if not len(prompt) == len(response_a) == len(response_b):
        lengths = f"prompt {len(prompt)}, response_a {len(response_a)}, response_b {len(response_b)}"
        raise BadRow(f"unequal turns: {lengths}")
    if not prompt:
        raise BadRow("no turns: prompt, response_a and response_b are []")
    identity = identify(cells)
    model_a, model_b = (clean(str(cells[name])) if cells.get(name) not in (None, "") else None for name in MODELS)
    return Conversation(identity, prompt, response_a, response_b, model_a, model_b, _votes(cells), source=source.name)


def identify(cells: Mapping[str, Any]) -> str:
    """A row's id as every stage writes it. Raises `BadRow` where it has none, or one that is no text in UTF-8.

    A whole number that came as a float, as pandas keeps a column of them with a gap, is that number: 1000.0 is 1000.
    Text stays letter for letter, 007 and 1000.0 too: a submission has to repeat it so.
    """
    value = cells.get("id")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()
    if missing:
        raise BadRow(f"id is missing: {shown(value)}")
    if SURROGATES.search(str(value)):
        raise BadRow(f"id is not UTF-8: {shown(value)}")
    return str(value)


def _turns(name: str, cell: Any) -> list[str]:
    if cell is None or cell == "":
        raise BadRow(f"{name} is empty: {shown(cell)}")
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{name} is not JSON: {shown(cell)} ({str(error)[:SHOWN]})") from None
    if not isinstance(cell, list):
        raise BadRow(f"{name} is not a list: {shown(cell)}")
    if odd := [item for item in cell if item is not None and not isinstance(item, str)]:
        raise BadRow(f"{name} holds an item that is neither text nor null: {shown(odd[0])}")
    return [clean(item or "") for item in cell]


def clean(text: str) -> str:
    """Lone surrogates, which cannot be encoded, become U+FFFD."""
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


def _votes(cells: Mapping[str, Any]) -> list[float] | None:
    if COUNTS[0] in cells:
        counts = [_number(cells[name]) for name in COUNTS]
        if not all(0 <= count < math.inf for count in counts) or not any(counts):
            raise BadRow(f"votes are not counts: {', '.join(shown(cells[name]) for name in COUNTS)}")
        return counts
    if BALLOTS in cells:
        ballots = cells[BALLOTS]  # text: the number 021 would have lost its tie
        if not isinstance(ballots, str) or not ballots or set(ballots) - set(BALLOT_DIGITS):
            raise BadRow(f"votes are not a text of the digits 1 (a), 2 (b), 0 (tie): {shown(ballots)}")
        return [float(ballots.count(digit)) for digit in BALLOT_DIGITS]
    if WINNERS[0] in cells:
        winner = [BOOLEANS.get(str(cells[name]).lower(), _number(cells[name])) for name in WINNERS]
        if sorted(winner) != [0.0, 0.0, 1.0]:
            raise BadRow(f"winner columns are not one-hot: {', '.join(shown(cells[name]) for name in WINNERS)}")
        return winner
    return None


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan
