"""Stanford Human Preferences: a post and two comments, of which Reddit's readers liked one more."""

from dataclasses import replace

from core.data.files.rows import shown
from core.data.layouts.layout import BadRow, Cells, Layout, Reading, by_row, number, score_in
from core.data.layouts.pairs import pair
from core.data.layouts.votes import A, B
from core.records import Conversation

LABEL = "labels"
SCORES = ("score_A", "score_B")


def conversations(cells: Cells, reading: Reading) -> list[Conversation]:
    """The pair of a row, its scores being votes up minus votes down. Raises `BadRow`."""
    found = pair(cells, reading, ("history",), (("human_ref_A",), ("human_ref_B",)))
    score_a, score_b = (score_in(cells.get(name)) for name in SCORES)
    found = replace(found, score_a=score_a, score_b=score_b)
    if not reading.with_votes or LABEL not in reading.columns:
        return [found]
    label = number(cells.get(LABEL))
    if label not in (0, 1):
        raise BadRow(f"{LABEL} is neither 1 (A) nor 0 (B): {shown(cells.get(LABEL))}")
    return [replace(found, votes=A if label else B)]


SHP = Layout(
    name="shp",
    looks="`history, human_ref_A, human_ref_B`; `labels` is 1 for A and 0 for B",
    source="https://huggingface.co/datasets/stanfordnlp/SHP",
    texts=(("history",), ("human_ref_A",), ("human_ref_B",)),
    votes=((LABEL,),),
    reads=tuple((name,) for name in SCORES),
    read=by_row(conversations),
    unlabelled=True,
    unneeded=(
        *("post_id", "upvote_ratio", "c_root_id_A", "c_root_id_B", "created_at_utc_A", "created_at_utc_B"),
        *("seconds_difference", "score_ratio"),
    ),
)
