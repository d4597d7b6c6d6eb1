"""What stands in a cell of text: one turn, a list of turns, a list of messages, or a transcript."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.files.rows import SHOWN, shown
from core.data.layouts.layout import BadRow, clean

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
TRANSCRIPT = re.compile(
    r"\s*Human:.*\n\nAssistant:", re.DOTALL
)  # as Anthropic writes them: "\n\nHuman: ...\n\nAssistant: ..."
SPEAKER = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")
MARKED = re.compile(
    r"\n?<extra_id_1>(User|Assistant)\n"
)  # as HelpSteer2 has several turns; the first text is the user's
PRINTED = re.compile(r"""\s*\[\s*(\{\s*)?['"].*\]\s*\Z""", re.DOTALL)
TEXT_PARTS = {None, "text", "input_text", "output_text"}  # types
OTHER_PARTS = ("image", "image_url", "video", "audio")  # keys
Message = tuple[str, str]  # a role of `ROLES`, and what it says


@dataclass(frozen=True)
class Dialogue:
    """What the user says and what is answered, turn by turn."""

    prompt: list[str]
    response: list[str]


def turns(name: str, cell: Any, listed: bool) -> list[str]:
    """The turns in a cell: of a list its items, of a text itself, or the JSON list in it where the column is `listed`.

    Raises `BadRow` for what is none of them.
    """
    if cell is None or (cell == "" and listed):
        raise BadRow(f"{name} is empty: {shown(cell)}")
    if isinstance(cell, str):
        if not listed:
            return [clean(cell)]
        cell = parsed(name, cell)
    if not isinstance(cell, list):
        raise BadRow(f"{name} is not a list: {shown(cell)}")
    if odd := [item for item in cell if item is not None and not isinstance(item, str)]:
        raise BadRow(f"{name} holds an item that is neither text nor null: {shown(odd[0])}")
    return [clean(item or "") for item in cell]


def parsed(name: str, cell: str) -> Any:
    """The JSON value in a text. Raises `BadRow` where it is none."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{name} is not JSON: {shown(cell)} ({str(error)[:SHOWN]})") from None


def holds_list(cell: str) -> bool:
    """Whether a text is a JSON list of texts or messages."""
    if not cell.lstrip().startswith("["):
        return False
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, list) and all(item is None or isinstance(item, str | dict) for item in found)


def is_printed_list(cell: str) -> bool:
    """Whether a text looks like a list as Python prints it, and pandas writes it to CSV: no JSON."""
    return bool(PRINTED.match(cell)) and not holds_list(cell)


def messages(name: str, cell: Any, listed: bool = False, speaker: str = "user") -> list[Message]:
    """The messages in a cell: a list of {role, content}, a transcript, or one text of `speaker`.

    Raises `BadRow` for what is none of them.
    """
    if isinstance(cell, str) and listed:
        cell = parsed(name, cell)
    if isinstance(cell, str):
        if TRANSCRIPT.match(cell):
            return transcript(SPEAKER.split(cell)[1:])
        if speaker == "user" and MARKED.search(cell):
            return transcript(["User", *MARKED.split(cell)])
        return [(speaker, clean(cell))]
    if isinstance(cell, dict):
        cell = [cell]
    if not isinstance(cell, list) or not cell:
        raise BadRow(f"{name} is neither text nor a list of messages: {shown(cell)}")
    return [message(name, item) for item in cell]


def message(name: str, item: Any) -> Message:
    """A {role, content}, whose content is a text or a list of parts. Raises `BadRow` for anything else."""
    role = item.get("role", item.get("from")) if isinstance(item, dict) else None
    if role not in ROLES:
        raise BadRow(f"{name} holds a message without a role of {', '.join(ROLES)}: {shown(item)}")
    content = item.get("content", item.get("value"))
    parts = content if isinstance(content, list) else [content]
    return ROLES[role], clean("\n\n".join(text for part in parts if (text := _text(name, part))))


def _text(name: str, part: Any) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    if isinstance(part, dict) and (part.get("type", "text") not in TEXT_PARTS or any(map(part.get, OTHER_PARTS))):
        raise BadRow(f"{name} holds an image or another part that is no text: {shown(part)}")
    if isinstance(part, dict) and isinstance(part.get("text"), str | None):
        return part.get("text") or ""
    raise BadRow(f"{name} holds a message whose content is no text: {shown(part)}")


def transcript(pieces: Sequence[str]) -> list[Message]:
    """The messages of speakers and what each says, one after the other; an answer still to be given is left out."""
    roles, said = pieces[::2], [clean(piece.strip()) for piece in pieces[1::2]]
    found = [("assistant" if role == "Assistant" else "user", text) for role, text in zip(roles, said, strict=True)]
    return found[:-1] if found[-1] == ("assistant", "") else found


def dialogue(name: str, said: Sequence[Message]) -> Dialogue:
    """The turns of messages; a system message begins the first question, and what one says in a row is one text.

    Raises `BadRow` where they do not begin with a question and end with an answer.
    """
    joined: list[list[str]] = []
    for role, text in said:
        role = "user" if role == "system" else role
        if joined and joined[-1][0] == role:
            joined[-1][1] += f"\n\n{text}" if joined[-1][1] else text
        else:
            joined.append([role, text])
    roles = [role for role, _ in joined]
    if not joined or roles[0] != "user" or roles[-1] != "assistant":
        raise BadRow(f"{name} does not begin with the user and end with the assistant: {', '.join(roles)}")
    return Dialogue([text for _, text in joined[::2]], [text for _, text in joined[1::2]])
