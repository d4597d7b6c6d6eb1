"""PandaLM's test set: an instruction, two responses, and what three annotators said."""

from dataclasses import replace

from core.data.files.rows import shown
from core.data.layouts.asking import AROUND
from core.data.layouts.layout import BadRow, Cells, Layout, Reading, by_row, number
from core.data.layouts.pairs import pair
from core.data.layouts.votes import BALLOT_DIGITS
from core.records import Conversation

ANNOTATORS = ("annotator1", "annotator2", "annotator3")


def conversations(cells: Cells, reading: Reading) -> list[Conversation]:
    """The pair of a row; an `input` is what the instruction is about. Raises `BadRow`."""
    found = pair(cells, reading, ("instruction",), (("response1",), ("response2",)))
    if not reading.with_votes or ANNOTATORS[0] not in reading.columns:
        return [found]
    said = [number(cells.get(name)) for name in ANNOTATORS]
    if not {*said} <= {*map(float, BALLOT_DIGITS)}:
        told = ", ".join(shown(cells.get(name)) for name in ANNOTATORS)
        raise BadRow(f"annotators say something else than 1 (a), 2 (b), 0 (tie): {told}")
    return [replace(found, votes=[float(said.count(float(digit))) for digit in BALLOT_DIGITS])]


PANDALM = Layout(
    name="pandalm",
    looks="`instruction, input, response1, response2`; `annotator1` to `annotator3` are 1, 2 or 0, a tie",
    source="https://github.com/WeOpenML/PandaLM",
    texts=(("instruction",), ("response1",), ("response2",)),
    votes=(ANNOTATORS,),
    reads=AROUND,
    read=by_row(conversations),
    unlabelled=True,
    unneeded=("motivation_app", "cmp_key"),
)
