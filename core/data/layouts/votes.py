"""How votes are told: names of the winner, one-hot columns, counts, digits of several people, grades, scores."""

import math
from typing import Any

from core.data.files.rows import shown
from core.data.layouts.layout import BadRow, Cells, number
from core.records import BOTH_BAD, LABELS

WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")  # one-hot
COUNTS = ("votes_a", "votes_b", "votes_tie")  # how many people voted so
BALLOTS = "votes"  # one digit a person
BALLOT_DIGITS = "120"  # PandaLM: 1 for a, 2 for b, 0 for a tie
BOOLEANS = {"true": 1.0, "false": 0.0}  # as pandas writes them in a CSV
A, B, TIE = ([float(label == name) for name in LABELS] for label in LABELS)
NAMED = {"model_a": A, "model_b": B, "tie": TIE, "a": A, "b": B}
BAD_TIES = {"tie (bothbad)", "tie (both bad)", "bothbad", "both_bad", "both bad"}
# Where other data keep votes, by a column's name or by what its cells say.
FOREIGN_VOTES = {
    *("winner", "preference", "preferred", "chosen", "label", "vote", "human_preference", "verdict", "better"),
    *("choice", "outcome", "result", "human_label"),
}
FOREIGN_VOTE = {*NAMED, *BAD_TIES} - {"a", "b"}

Vote = tuple[list[float], dict[str, str]]  # counts in the order of `LABELS`, and tags


def by_name(name: str, cell: Any) -> Vote:
    """The vote for the winner that is called model_a, model_b, tie, or a tie of two bad ones."""
    told = str(cell).strip().lower()
    if told in BAD_TIES:
        return TIE, dict(BOTH_BAD)
    if told not in NAMED:
        raise BadRow(f"{name} is none of model_a, model_b, tie, both_bad: {shown(cell)}")
    return NAMED[told], {}


def by_columns(cells: Cells, group: tuple[str, ...]) -> list[float]:
    """Votes that stand in the columns of `group`, one of `COUNTS`, `BALLOTS` and `WINNERS`."""
    if group == COUNTS:
        counts = [number(cells.get(name)) for name in COUNTS]
        if not all(0 <= count < math.inf for count in counts) or not any(counts):
            raise BadRow(f"votes are not counts: {', '.join(shown(cells.get(name)) for name in COUNTS)}")
        return counts
    if group == (BALLOTS,):
        ballots = cells.get(BALLOTS)  # text: the number 021 would have lost its tie
        if not isinstance(ballots, str) or not ballots or set(ballots) - set(BALLOT_DIGITS):
            raise BadRow(f"votes are not a text of the digits 1 (a), 2 (b), 0 (tie): {shown(ballots)}")
        return [float(ballots.count(digit)) for digit in BALLOT_DIGITS]
    winner = [BOOLEANS.get(str(cells.get(name)).lower(), number(cells.get(name))) for name in WINNERS]
    if sorted(winner) != [0.0, 0.0, 1.0]:
        raise BadRow(f"winner columns are not one-hot: {', '.join(shown(cells.get(name)) for name in WINNERS)}")
    return winner


def by_score(a: float, b: float) -> list[float]:
    """The vote for the response with the higher score; equal ones are a tie."""
    return A if a > b else B if b > a else TIE
