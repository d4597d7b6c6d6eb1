"""The one renderer, of teacher, student, export and eval: conversation and order in, token ids within a budget out.

    <instruction> <question> q1 <answer_a> .. <answer_b> .. <question> q2 <answer_a> .. <answer_b> .. <verdict>

With `show_models`, <model_a> name <model_b> name stand before the verdict.

The newest round is always shown. Of what the budget leaves, older rounds are taken from the newest back, and a marker
stands for those left out. Within a round that does not fit, the question comes first (a third of the room is its own,
more where the answers need less), then the longer answer is shortened until both are equally long. A text is
shortened in its middle, where another marker stands. Shared text is in front, so both orders share a prefix.

Fixed texts and user texts are tokenised apart, so what a user wrote can neither merge with a marker nor pose as one,
and special-token strings inside a user's text are encoded as plain text. In the template they are special tokens, so
that it can hold a chat format.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from distill.config import PromptConfig, from_mapping
from distill.errors import UserError
from distill.records import ORDERS, Conversation, Order
from distill.runs import Manifest, differing_fields

LAYOUT_VERSION = 1  # raise it when the same inputs would give other ids: it is part of every prompt hash
NAME_TOKENS = 32  # room for a model's name
UNNAMED = "an unknown model"
CHUNK = 1024  # conversations tokenised at a time: enough to keep the tokenizer's threads busy, small in memory


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt of one conversation in one order. `truncated`: something of the conversation was left out."""

    id: str
    order: Order
    ids: list[int]
    truncated: bool


class Renderer:
    """Renders conversations with one template, one budget and one tokenizer."""

    def __init__(self, config: PromptConfig, tokenizer_folder: Path):
        """Raises `UserError` where the folder has no tokenizer.json or the budget is too small for the template."""
        path = tokenizer_folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{tokenizer_folder} has no tokenizer.json: save the model's fast tokenizer there")
        self.config = config
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._start = self._tokenizer.encode("").ids  # the bos token of models that want one
        fixed = {name: self._encode([text])[0] for name, text in asdict(config.template).items()}
        self._tokenizer.encode_special_tokens = True
        self._opening = self._start + fixed["instruction"]
        self._question, self._answers = fixed["question"], (fixed["answer_a"], fixed["answer_b"])
        self._names = (fixed["model_a"], fixed["model_b"])
        self._verdict, self._cut, self._omitted = fixed["verdict"], fixed["cut"], fixed["omitted"]
        self._round_overhead = len(self._question) + sum(map(len, self._answers))
        self._budget = config.max_tokens - len(self._opening) - len(self._verdict)
        minimum = (
            config.max_tokens - self._budget + self._round_overhead + len(self._omitted) + 3 * (len(self._cut) + 2)
        )
        if config.show_models:
            minimum += sum(map(len, self._names)) + 2 * NAME_TOKENS
        if config.max_tokens < minimum:
            raise UserError(
                f"prompt.max_tokens={config.max_tokens}: this template and tokenizer need at least {minimum}"
            )

    @property
    def hashes(self) -> dict[str, str]:
        """`template`: what a judge is shown of a conversation, whatever its tokenizer; models' names are left aside, so
        that a student may learn from a teacher that sees them. `prompt`: all of it, the budget and the tokenizer.
        """
        texts = asdict(self.config.template)
        names = {name: texts.pop(name) for name in ("model_a", "model_b")}
        template = _digest([LAYOUT_VERSION, texts])
        tokenizer = json.loads(self._tokenizer.to_str())
        parts = [template, self.config.max_tokens, self.config.min_round_tokens, tokenizer]
        return {"template": template, "prompt": _digest([*parts, names] if self.config.show_models else parts)}

    def render(self, conversations: Iterable[Conversation], orders: Sequence[Order] = ORDERS) -> Iterator[Rendered]:
        """The prompts in the order given, all `orders` of a conversation together."""
        remaining = iter(conversations)
        while chunk := list(islice(remaining, CHUNK)):
            texts = [text for c in chunk for text in (*c.prompt, *c.response_a, *c.response_b)]
            encoded = iter(self._encode(texts))
            for c in chunk:
                questions, side_a, side_b = (
                    [next(encoded) for _ in part] for part in (c.prompt, c.response_a, c.response_b)
                )
                names = self._encode_names(c)
                for order in orders:
                    first, second = (side_a, side_b) if order == "ab" else (side_b, side_a)
                    shown = names if order == "ab" else names[::-1]
                    ids, truncated = self._assemble(list(zip(questions, first, second, strict=True)), shown)
                    yield Rendered(c.id, order, ids, truncated)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_names(self, conversation: Conversation) -> list[list[int]]:
        """The names of models a and b, none where they are not shown."""
        if not self.config.show_models:
            return []
        names = self._encode([name or UNNAMED for name in (conversation.model_a, conversation.model_b)])
        return [name[:NAME_TOKENS] for name in names]

    def _assemble(
        self, rounds: list[tuple[list[int], list[int], list[int]]], names: Sequence[list[int]]
    ) -> tuple[list[int], bool]:
        sizes = [(len(q), len(first), len(second)) for q, first, second in rounds]
        authors = [token for part in zip(self._names, names, strict=False) for tokens in part for token in tokens]
        kept = self._fit(sizes, self._budget - len(authors))
        left_out = len(rounds) - len(kept)
        ids = list(self._opening)
        if left_out:
            ids += self._omitted
        for texts, lengths in zip(rounds[left_out:], kept, strict=True):
            for marker, text, length in zip((self._question, *self._answers), texts, lengths, strict=True):
                ids += marker
                ids += shorten(text, length, self._cut)
        ids += authors + self._verdict
        assert len(ids) <= self.config.max_tokens
        return ids, kept != sizes

    def _fit(self, sizes: list[tuple[int, int, int]], budget: int) -> list[tuple[int, int, int]]:
        """Lengths for the newest rounds that the budget holds, oldest of them first."""
        if sum(map(sum, sizes)) + len(sizes) * self._round_overhead <= budget:
            return sizes
        budget -= len(self._omitted) if len(sizes) > 1 else 0
        kept: list[tuple[int, int, int]] = []
        for size in reversed(sizes):
            room = budget - self._round_overhead
            if kept and room < min(self.config.min_round_tokens, sum(size)):
                break
            kept.append(share_room(*size, room))
            budget = room - sum(kept[-1])
        return kept[::-1]


def shorten(text: list[int], length: int, cut: list[int]) -> list[int]:
    """`text` in at most `length` tokens, with `cut` in place of its middle; its beginning where there is no room."""
    if len(text) <= length:
        return text
    shown = length - len(cut)
    if shown < 2:
        return text[:length]
    tail = shown // 2
    return text[: shown - tail] + cut + text[-tail:]


def share_room(question: int, first: int, second: int, room: int) -> tuple[int, int, int]:
    """How many tokens of a question and two answers to show in `room` tokens.

    Exchanging the answers exchanges the result.
    """
    if question + first + second <= room:
        return question, first, second
    question = min(question, max(room // 3, room - first - second))
    rest = room - question
    if first + second > rest:
        shorter = min(first, second)
        level = rest - shorter if 2 * shorter <= rest else rest // 2
        first, second = min(first, level), min(second, level)
    return question, first, second


def renderer_of(manifest: Manifest, folder: Path, tokenizer: Path) -> Renderer:
    """The renderer that the judge in `folder` was made for, by its manifest, with the tokenizer of another folder.

    Raises `UserError` naming the hashes that differ where this code and that tokenizer give other prompts.
    """
    renderer = Renderer(from_mapping(PromptConfig, manifest.config["prompt"]), tokenizer)
    if differences := differing_fields(manifest.prompt, renderer.hashes):
        raise UserError(
            f"{folder} was made for other prompts than this code renders with {tokenizer}:\n"
            + "\n".join(f"  - {name} hash: there {there}, now {now}" for name, there, now in differences)
            + "\n  the tokenizer or the renderer has changed since: use the version that made it, or make it anew"
        )
    return renderer


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
