"""The messages that a chat API is asked with, from one template file: a block for each role.

No tokenizer is at hand, so room is counted in characters. What does not fit is left out as `core.prompts` does: the
oldest turns first, then the middle of the longer answer of the last turn, and of its question.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from core.errors import UserError
from core.prompts import UNNAMED, PromptConfig, share_room
from core.records import LABELS, ORDERS, Conversation, Order
from teachers.config import ChatConfig

TEMPLATE = Path(__file__).with_name("judge.jinja")
ROLES = ("system", "user")  # the blocks of a template, each a message; the second is needed
CUT = " [...] "
Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What is asked of one conversation in one order. `truncated`: something of it was left out."""

    id: str
    order: Order
    messages: list[Message]
    truncated: bool

    @property
    def characters(self) -> int:
        return sum(len(message["content"]) for message in self.messages)


class ChatRenderer:
    """Renders conversations with the template at a path (None: our own), `labels` as the three answers."""

    def __init__(self, path: str | None, labels: Sequence[str], max_characters: int, show_models: bool) -> None:
        """Raises `UserError` for a template that is not there, or cannot be rendered, and for labels that are alike."""
        self.where = str(path or TEMPLATE)
        self.labels = [label.strip() for label in labels]
        if len({*self.labels}) != len(LABELS) or not all(self.labels):
            raise UserError(
                f"prompt.label_tokens={list(labels)}: give one text for each of {list(LABELS)}, all different"
            )
        self.max_characters, self.show_models = max_characters, show_models
        try:
            self._source = Path(self.where).read_text()
            self._template = SandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(self._source)
        except (OSError, UnicodeDecodeError, jinja2.TemplateError) as error:
            raise UserError(f"teacher.chat.template={self.where} cannot be read: {error}") from error
        if ROLES[1] not in self._template.blocks:
            raise UserError(f"teacher.chat.template={self.where}: it has no {{% block {ROLES[1]} %}}")
        self._messages([("", "", "")], [None, None])

    @property
    def hash(self) -> str:
        """Tells these prompts from any others."""
        told = [self._source, self.labels, self.max_characters, self.show_models, CUT]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def render(self, conversations: Iterable[Conversation]) -> Iterator[ChatPrompt]:
        """Both orders of each conversation."""
        for c in conversations:
            for order in ORDERS:
                shown = c if order == "ab" else c.swap()
                turns = fitted(shown, self.max_characters)
                whole = [*zip(shown.prompt, shown.response_a, shown.response_b, strict=True)]
                names = [shown.model_a or UNNAMED, shown.model_b or UNNAMED] if self.show_models else [None, None]
                yield ChatPrompt(c.id, order, self._messages(turns, names), turns != whole)

    def _messages(self, turns: Sequence[Sequence[str]], names: Sequence[str | None]) -> list[Message]:
        variables: dict[str, Any] = {
            "turns": [dict(zip(("question", "answer_a", "answer_b"), turn, strict=True)) for turn in turns],
            "labels": self.labels,
            "model_a": names[0],
            "model_b": names[1],
        }
        try:
            context = self._template.new_context(variables)
            blocks = {r: "".join(self._template.blocks[r](context)) for r in ROLES if r in self._template.blocks}
        except jinja2.TemplateError as error:
            raise UserError(f"teacher.chat.template={self.where} cannot be rendered: {error}") from error
        return [{"role": role, "content": text} for role, text in blocks.items()]


def fitted(conversation: Conversation, room: int) -> list[tuple[str, str, str]]:
    """(question, answer a, answer b) of the newest turns that `room` characters hold; the last is cut where it must."""
    turns = [*zip(conversation.prompt, conversation.response_a, conversation.response_b, strict=True)]
    kept: list[tuple[str, str, str]] = []
    for turn in reversed(turns):
        if kept and sum(map(len, turn)) > room:
            break
        lengths = share_room(len(turn[0]), len(turn[1]), len(turn[2]), room)
        question, answer_a, answer_b = (shortened(text, n) for text, n in zip(turn, lengths, strict=True))
        kept.append((question, answer_a, answer_b))
        room -= sum(lengths)
    return kept[::-1]


def shortened(text: str, length: int) -> str:
    """`text` in at most `length` characters, `CUT` in place of its middle."""
    if len(text) <= length:
        return text
    shown = max(0, length - len(CUT))
    return text[: shown - shown // 2] + CUT + text[len(text) - shown // 2 :] if shown else text[:length]


def renderer_of(config: ChatConfig, prompt: PromptConfig) -> ChatRenderer:
    """What turns conversations into messages."""
    return ChatRenderer(config.template, prompt.label_tokens, config.max_characters, prompt.show_models)


def questions(config: ChatConfig, renderer: ChatRenderer) -> dict[str, Any]:
    """What the answers depend on: what is asked of whom, and how."""
    how = {"model": config.model, "samples": config.samples, "max_tokens": config.max_tokens, "body": dict(config.body)}
    return {"prompt": renderer.hash, **how}
