"""Two plain answers a row to what one column asks."""

from core.data.files.rows import shown
from core.data.layouts.layout import BadRow, Cells, Names, Reading, clean
from core.data.layouts.texts import dialogue, messages
from core.records import Conversation


def pair(cells: Cells, reading: Reading, asked: Names, responses: tuple[Names, Names]) -> Conversation:
    """The two answers, a and b, to what a text or a list of messages asks. Raises `BadRow`."""
    name = reading.named(asked)
    assert name is not None
    cell = cells.get(name)
    if cell is None or cell == "":
        raise BadRow(f"{name} is empty: {shown(cell)}")
    prompt, sides = messages(name, cell, name in reading.lists), []
    for names in responses:
        answer = reading.cell(cells, names)
        if not isinstance(answer, str):
            raise BadRow(f"{reading.named(names)} is no text: {shown(answer)}")
        sides.append(dialogue(name, [*prompt, ("assistant", clean(answer))]))
    a, b = sides
    return Conversation("", a.prompt, a.response, b.response)
