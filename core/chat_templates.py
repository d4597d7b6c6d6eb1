"""What a tokenizer's own chat template puts around texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError

SLOT = "\ue000{}\ue001"  # stands for a text while the template is rendered; no template holds private-use characters
DATE = "26 Jul 2024"  # Llama 3.1's own; Llama 3.2's template would take today's, and a run could not go on tomorrow
USER, ASSISTANT = "{user}", "{assistant}"  # in a prompt's template: what stands before a request, and before its answer


def pieces_around(tokenizer: Any, folder: Path, slots: Sequence[str], padding: str = "") -> tuple[str, ...]:
    """What the chat template of a transformers tokenizer from `folder` writes before, between and after `slots`.

    These are texts of user and assistant in turn, after `padding`; after a last one of the user's, the assistant's
    answer is asked for. Raises `UserError` where the template cannot show them once and in order.
    """
    import jinja2

    turns = [{"role": ("user", "assistant")[i % 2], "content": padding + slot} for i, slot in enumerate(slots)]
    count, where = (len(slots) + 1) // 2, f"the chat template of {folder}"
    asked = {"tokenize": False, "add_generation_prompt": len(slots) % 2 == 1, "date_string": DATE}
    try:
        chat = tokenizer.apply_chat_template(turns, **asked)
    except jinja2.TemplateError as error:
        raise UserError(f"{where} cannot show {count} turns of user and assistant: {error}") from error
    rest, pieces = str(chat), []
    for slot in slots:
        piece, found, rest = rest.partition(slot)
        if not found or slot in rest:
            raise UserError(f"{where} does not show each text of {count} turns once and in order: use another")
        pieces.append(piece)
    return (*pieces, rest)


def as_chat(texts: Mapping[str, str], folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """A prompt's fixed texts with what the chat template in `folder` has for `USER` and `ASSISTANT`, and these two.

    No texts of a chat where neither stands in them. Raises `UserError` where the tokenizer has no chat template.
    """
    if not any(marker in text for text in texts.values() for marker in (USER, ASSISTANT)):
        return dict(texts), ()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise UserError(
            f"prompt.template has {USER} or {ASSISTANT}, and the tokenizer in {folder} has no chat template: give a "
            "prompt that spells its chat format out, such as prompt=chatml, or one without"
        )
    chat = pieces_around(tokenizer, folder, [SLOT.format(0)])
    return {name: text.replace(USER, chat[0]).replace(ASSISTANT, chat[1]) for name, text in texts.items()}, chat
