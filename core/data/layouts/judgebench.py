"""JudgeBench: a question, two responses of one model, and which of them is right."""

from dataclasses import replace

from core.data.files.rows import shown
from core.data.layouts.asking import AROUND
from core.data.layouts.layout import BadRow, Cells, Layout, Reading, by_row
from core.data.layouts.pairs import pair
from core.data.layouts.votes import TIE, A, B
from core.records import Conversation

LABEL = "label"
VOTES = {"A>B": A, "B>A": B, "A=B": TIE}


def conversations(cells: Cells, reading: Reading) -> list[Conversation]:
    """The pair of a row. Raises `BadRow`."""
    found = pair(cells, reading, ("question",), (("response_A",), ("response_B",)))
    if not reading.with_votes or LABEL not in reading.columns:
        return [found]
    label = cells.get(LABEL)
    if label not in VOTES:
        raise BadRow(f"{LABEL} is none of {', '.join(VOTES)}: {shown(label)}")
    return [replace(found, votes=VOTES[label])]


JUDGEBENCH = Layout(
    name="judgebench",
    looks="`question, response_A, response_B`; `label` is A>B or B>A",
    source="https://huggingface.co/datasets/ScalerLab/JudgeBench",
    texts=(("question",), ("response_A",), ("response_B",)),
    votes=((LABEL,),),
    reads=AROUND,
    read=by_row(conversations),
    unlabelled=True,
    unneeded=("original_id", "response_model"),
)
