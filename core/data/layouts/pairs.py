"""Two plain answers a row to what one column asks."""

from core.data.files.rows import shown
from core.data.layouts.asking import asked
from core.data.layouts.layout import BadRow, Cells, Names, Reading, clean
from core.data.layouts.texts import dialogue
from core.records import Conversation


def pair(cells: Cells, reading: Reading, question: Names, responses: tuple[Names, Names]) -> Conversation:
    """The two answers, a and b, to what a text or a list of messages asks. Raises `BadRow`."""
    prompt, sides = asked(cells, reading, question), []
    name = reading.needed(question)
    for names in responses:
        answer = reading.cell(cells, names)
        if not isinstance(answer, str):
            raise BadRow(f"{reading.named(names)} is no text: {shown(answer)}")
        sides.append(dialogue(name, [*prompt, ("assistant", clean(answer))]))
    a, b = sides
    return Conversation("", a.prompt, a.response, b.response)
