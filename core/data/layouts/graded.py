"""Graded preferences: HelpSteer2 and HelpSteer3, from -3 (response 1 is much better) to 3 (response 2 is)."""

from collections.abc import Sequence
from dataclasses import replace

from core.data.files.rows import shown
from core.data.layouts.asking import AROUND
from core.data.layouts.layout import BadRow, Cells, Layout, Names, Reading, by_row, number
from core.data.layouts.pairs import pair
from core.data.layouts.votes import TIE
from core.records import Conversation

CONTEXT: Names = ("context", "prompt")
RESPONSES: tuple[Names, Names] = (("response1", "response_1"), ("response2", "response_2"))
GRADE: Names = ("overall_preference", "preference_strength")


def conversations(cells: Cells, reading: Reading) -> list[Conversation]:
    """The pair of a row, a being response 1. Raises `BadRow`."""
    found = pair(cells, reading, CONTEXT, RESPONSES)
    name = reading.named(GRADE)
    if not reading.with_votes or name is None:
        return [found]
    return [replace(found, votes=graded(name, cells.get(name), reading.grades))]


def graded(name: str, cell: object, grades: Sequence[float]) -> list[float]:
    """The vote of a grade: the share in `grades` for the better response, the rest for a tie; 0 is a tie."""
    grade = number(cell)
    if grade not in range(-len(grades), len(grades) + 1):
        raise BadRow(f"{name} is no whole number from -{len(grades)} to {len(grades)}: {shown(cell)}")
    if grade == 0:
        return TIE
    share = grades[int(abs(grade)) - 1]
    rest = round(1 - share, 12)
    return [share, 0.0, rest] if grade < 0 else [0.0, share, rest]


GRADED = Layout(
    name="graded",
    looks="`context, response1, response2`; `overall_preference` (or `preference_strength`) from -3, response 1 is "
    "much better, to 3, response 2 is; 0: about the same",
    source="https://huggingface.co/datasets/nvidia/HelpSteer3, https://huggingface.co/datasets/nvidia/HelpSteer2",
    texts=(CONTEXT, *RESPONSES),
    votes=tuple((name,) for name in GRADE),
    reads=AROUND,
    read=by_row(conversations),
    settings=("grades",),
    unlabelled=True,
    unneeded=(
        *("individual_preference", "split", "preference_statement", "preference_elaboration"),
        *("three_most_similar_preferences", "all_preferences_unprocessed"),
    ),
)
