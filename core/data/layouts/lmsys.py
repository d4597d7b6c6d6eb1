"""Two columns of responses: LMSYS's Kaggle contest and what is laid out like it, and WSDM's, which names the winner."""

from core.data.files.rows import shown
from core.data.layouts.layout import MODELS, BadRow, Cells, Layout, Reading, by_row, name_in
from core.data.layouts.texts import holds_list, turns
from core.data.layouts.votes import BALLOTS, COUNTS, WINNERS, by_columns, by_name
from core.records import Conversation

TEXTS = ("prompt", "response_a", "response_b")
WINNER = "winner"


def conversations(cells: Cells, reading: Reading) -> list[Conversation]:
    """The pair of a row. Raises `BadRow`."""
    prompt, response_a, response_b = (turns(name, cells.get(name), name in reading.lists) for name in TEXTS)
    if not reading.lists and all(isinstance(cell := cells.get(name), str) and holds_list(cell) for name in TEXTS):
        raise BadRow(f"JSON lists where the first rows are plain texts: {shown(cells['prompt'])}")
    if prompt == [""] and "prompt" not in reading.lists and cells.get("prompt") == "":
        raise BadRow("prompt is empty: ''")
    if not len(prompt) == len(response_a) == len(response_b):
        lengths = f"prompt {len(prompt)}, response_a {len(response_a)}, response_b {len(response_b)}"
        raise BadRow(f"unequal turns: {lengths}")
    if not prompt:
        raise BadRow("no turns: prompt, response_a and response_b are []")
    model_a, model_b = (name_in(cells, reading.named((name,))) for name in MODELS)
    votes: list[float] | None = None
    tags: dict[str, str] = {}
    if reading.with_votes:
        if group := LMSYS.votes_in(reading.columns):
            votes = by_columns(cells, group)
        elif WINNER in reading.columns:
            votes, tags = by_name(WINNER, cells.get(WINNER))
    return [Conversation("", prompt, response_a, response_b, model_a, model_b, votes, tags=tags)]


LMSYS = Layout(
    name="lmsys",
    looks="texts in `prompt, response_a, response_b`, JSON lists with an item a turn or plain ones; one-hot "
    "`winner_model_a, winner_model_b, winner_tie`, or `votes_a, votes_b, votes_tie`, or digits in `votes`, or no votes",
    source="https://www.kaggle.com/competitions/lmsys-chatbot-arena/data",
    texts=tuple((name,) for name in TEXTS),
    votes=(COUNTS, (BALLOTS,), WINNERS),
    reads=tuple((name,) for name in MODELS),
    read=by_row(conversations, one_id=True),
    unneeded=("scored",),
    one_id=True,
    unlabelled=True,
)
WSDM = Layout(
    name="wsdm",
    looks="the same texts, mostly plain; `winner` is model_a or model_b; `language`",
    source="https://www.kaggle.com/competitions/wsdm-cup-multilingual-chatbot-arena/data",
    texts=LMSYS.texts,
    votes=((WINNER,),),
    reads=LMSYS.reads,
    read=LMSYS.read,
    unneeded=("scored",),
    one_id=True,
)
