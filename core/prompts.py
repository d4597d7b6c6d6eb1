"""The one renderer, of teacher, student, export and eval: conversation and order in, token ids within a budget out.

    <instruction> <question> q1 <answer_a> .. <answer_b> .. <question> q2 <answer_a> .. <answer_b> .. <verdict>

A pointwise judge is shown one response: without <answer_b>, order "ab" shows response a and "ba" response b, each
within the budget, whatever the other one is. With `show_models`, <model_a> name <model_b> name stand before the
verdict.

Where <answer_a> and <answer_b> hold {words}, they tell how many words the whole response has, however much is cut.

The newest turn is always shown. Of what the budget leaves, older turns are taken from the newest back, and a marker
stands for those left out. Within a turn that does not fit, the question comes first (a third of the room is its own,
more where the answers need less), then the longer answer is shortened until both are equally long. A text is
shortened in its middle, where another marker stands. Shared text is in front, so both orders share a prefix.

Fixed texts and user texts are tokenised apart, so what a user wrote can neither merge with a marker nor pose as one:
inside a user's text, special tokens and all added tokens that the template uses are plain text. In the template they
are tokens, so that it can hold a chat format. (A SentencePiece tokenizer puts its space before each of these texts.)

What the tokenizer puts around a text (its post-processor: bos, in some also eos) stands once around the whole prompt,
not a second time where the template has it already.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

from tokenizers import Tokenizer

from core.artefacts.identity import differing_fields
from core.artefacts.manifest import Manifest
from core.bounds import Count, Natural
from core.chat_templates import as_chat
from core.config import from_mapping
from core.errors import UserError
from core.prompt_markers import frame, without_markers
from core.records import ORDERS, Conversation, Order
from core.words import count_words

LAYOUT_VERSION = 1  # raise it when the same inputs would give other ids: it is part of every prompt hash
WORDS_VERSION = 3  # the same for how words are counted: it is part of the hash of templates that tell them
NAME_TOKENS = 32  # room for a model's name
WORDS = "{words}"  # in <answer_a> and <answer_b>
NUMBER_TOKENS = 8  # room for a number of words
UNNAMED = "an unknown model"
CHUNK = 1024  # conversations tokenised at a time: enough to keep the tokenizer's threads busy, small in memory


@dataclass(frozen=True)
class TemplateConfig:
    """The fixed texts of a prompt, in the order shown at the top of `core/prompts.py`.

    Special and added tokens in them, such as a chat format's, are understood; in users' texts never. {user} and
    {assistant} stand for what the tokenizer's own chat template puts before a request and before its answer.
    """

    instruction: str
    """Stands first, once."""
    question: str
    """Before the user's message of each turn."""
    answer_a: str
    """Before response a of each turn; {words} in it stands for the number of words of the whole response."""
    answer_b: str | None
    """Before response b of each turn; null: the prompt shows one response alone (model.kind=pointwise)."""
    verdict: str
    """Stands last, once; the judge answers after it."""
    cut: str
    """In place of the middle of a text that was shortened."""
    omitted: str
    """In place of the older turns that were left out."""
    model_a: str
    """Before the name of model a, where `show_models` is true."""
    model_b: str
    """Before the name of model b, where `show_models` is true."""


@dataclass(frozen=True)
class PromptConfig:
    """What a judge is shown of a conversation."""

    max_tokens: Count
    """Budget of one prompt in tokens. Teachers and students of one experiment may differ."""
    min_turn_tokens: Natural
    """An older turn is left out rather than squeezed into fewer tokens than this."""
    show_models: bool
    """Tell the judge which models answered. Only for teachers: their student need not know."""
    label_tokens: list[str]
    """How a language model names its verdict after this prompt, one token each: a wins, b wins, tie; of one response:
    good, bad."""
    template: TemplateConfig

    @property
    def pointwise(self) -> bool:
        """Whether it shows one response alone."""
        return self.template.answer_b is None


class ResponseIds(list[int]):
    """Token ids of a prompt that shows one response, and those that show the `other` one to the same conversation.

    None: there is no other, and it is the reward that is asked for.
    """

    __slots__ = ("other",)

    def __init__(self, ids: Iterable[int], other: list[int] | None):
        super().__init__(ids)
        self.other = other


@dataclass(frozen=True, slots=True)
class Text:
    """A user's or a model's text: its token ids, and how many words it has, 0 where no template tells that."""

    ids: list[int]
    words: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt of one conversation in one order. `truncated`: something of the conversation was left out.

    For a pointwise judge `ids` are `ResponseIds` of the response that the order names first, and `truncated` is said of
    both.
    """

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
        start, end = frame(self._tokenizer)
        self.pointwise = config.pointwise
        given = {name: text for name, text in asdict(config.template).items() if text is not None}
        if elsewhere := [name for name, text in given.items() if WORDS in text and not name.startswith("answer_")]:
            raise UserError(f"prompt.template.{elsewhere[0]} holds {WORDS}, which answer_a and answer_b alone can tell")
        self._tells_words = any(WORDS in text for text in given.values())
        given, self._chat = as_chat(given, tokenizer_folder)
        fixed = {name: self._encode([text])[0] for name, text in given.items()}
        sides = ("a",) if self.pointwise else ("a", "b")
        self._answers = [self._encode(given[f"answer_{side}"].split(WORDS)) for side in sides]
        used = {token for ids in (start, *fixed.values(), *chain(*self._answers), end) for token in ids}
        self._tokenizer, _ = without_markers(self._tokenizer, used)
        instruction, verdict = fixed["instruction"], fixed["verdict"]
        self._omitted, self._cut = fixed["omitted"], fixed["cut"]
        self._question = fixed["question"]
        self._names = [fixed[f"model_{side}"] for side in sides]
        has_start = (instruction or self._question)[: len(start)] == start
        has_end = verdict[max(len(verdict) - len(end), 0) :] == end
        self._opening = instruction if has_start else start + instruction
        self._closing = verdict if has_end else verdict + end
        self.closed = bool(end)  # the tokenizer ends every text, so nothing can be asked of what comes next
        if has_start and not instruction:
            self._omitted = start + self._omitted  # which then stands before the question
        # What the hash says of it: nothing where the start is put in front and that is all, as it always was.
        usual = not end and not (start and has_start)
        self._frame = [] if usual else [has_start, has_end]
        self._round_overhead = len(self._question) + sum(map(_room, self._answers))
        self._budget = config.max_tokens - len(self._opening) - len(self._closing)
        minimum = (
            config.max_tokens - self._budget + self._round_overhead + len(self._omitted) + 3 * (len(self._cut) + 2)
        )
        if config.show_models:
            minimum += sum(map(len, self._names)) + len(self._names) * NAME_TOKENS
        if config.max_tokens < minimum:
            raise UserError(
                f"prompt.max_tokens={config.max_tokens}: this template and tokenizer need at least {minimum}"
            )

    @property
    def hashes(self) -> dict[str, str]:
        """`template`: what a judge is shown of a conversation, whatever its tokenizer; models' names are left aside, so
        that a student may learn from a teacher that sees them. `prompt`: all of it, the budget and the tokenizer. A
        prompt that shows one response says so as `kind`.
        """
        texts = asdict(self.config.template)
        names = {name: texts.pop(name) for name in ("model_a", "model_b")}
        template = _digest([LAYOUT_VERSION, texts, *[WORDS_VERSION] * self._tells_words])
        tokenizer = json.loads(self._tokenizer.to_str())
        parts = [template, self.config.max_tokens, self.config.min_turn_tokens, tokenizer, *self._frame, *self._chat]
        kind = {"kind": "pointwise"} if self.pointwise else {}
        return {"template": template, "prompt": _digest([*parts, names] if self.config.show_models else parts), **kind}

    def render(self, conversations: Iterable[Conversation], orders: Sequence[Order] = ORDERS) -> Iterator[Rendered]:
        """The prompts in the order given, all `orders` of a conversation together."""
        remaining = iter(conversations)
        while chunk := list(islice(remaining, CHUNK)):
            texts = [text for c in chunk for text in (*c.prompt, *c.response_a, *c.response_b)]
            words = [count_words(text) if self._tells_words else 0 for text in texts]
            encoded = (Text(*of) for of in zip(self._encode(texts), words, strict=True))
            for c in chunk:
                questions, side_a, side_b = (
                    [next(encoded) for _ in part] for part in (c.prompt, c.response_a, c.response_b)
                )
                names = self._encode_names(c)
                yield from self._render(c, orders, questions, (side_a, side_b), names)

    def _render(
        self,
        conversation: Conversation,
        orders: Sequence[Order],
        questions: list[Text],
        sides: tuple[list[Text], list[Text]],
        names: Sequence[list[int]],
    ) -> Iterator[Rendered]:
        """One conversation's prompts, from the tokens of its texts."""
        if self.pointwise:
            # Each response alone, whatever is asked for: a prompt knows the other one's.
            pair = [
                self._assemble(list(zip(questions, side, strict=True)), names[i : i + 1])
                for i, side in enumerate(sides)
            ]
            truncated = any(cut for _, cut in pair)
            for order in orders:
                (own, _), (other, _) = pair if order == "ab" else pair[::-1]
                yield Rendered(conversation.id, order, ResponseIds(own, other), truncated)
            return
        for order in orders:
            first, second = sides if order == "ab" else sides[::-1]
            shown = names if order == "ab" else names[::-1]
            ids, cut = self._assemble(list(zip(questions, first, second, strict=True)), shown)
            yield Rendered(conversation.id, order, ids, cut)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_names(self, conversation: Conversation) -> list[list[int]]:
        """The names of models a and b, none where they are not shown."""
        if not self.config.show_models:
            return []
        names = self._encode([name or UNNAMED for name in (conversation.model_a, conversation.model_b)])
        return [name[:NAME_TOKENS] for name in names]

    def _assemble(self, turns: Sequence[tuple[Text, ...]], names: Sequence[list[int]]) -> tuple[list[int], bool]:
        sizes = [tuple(len(text.ids) for text in turn) for turn in turns]
        authors = [token for part in zip(self._names, names, strict=False) for tokens in part for token in tokens]
        kept = self._fit(sizes, self._budget - len(authors))
        left_out = len(turns) - len(kept)
        ids = list(self._opening)
        if left_out:
            ids += self._omitted
        for texts, lengths in zip(turns[left_out:], kept, strict=True):
            for marker, text, length in zip(([self._question], *self._answers), texts, lengths, strict=True):
                ids += marker[0]
                for part in marker[1:]:
                    ids += self._encode([str(text.words)])[0][:NUMBER_TOKENS] + part
                ids += shorten(text.ids, length, self._cut)
        ids += authors + self._closing
        assert len(ids) <= self.config.max_tokens
        return ids, kept != sizes

    def _fit(self, sizes: list[tuple[int, ...]], budget: int) -> list[tuple[int, ...]]:
        """Lengths for the newest turns that the budget holds, oldest of them first."""
        if sum(map(sum, sizes)) + len(sizes) * self._round_overhead <= budget:
            return sizes
        budget -= len(self._omitted) if len(sizes) > 1 else 0
        kept: list[tuple[int, ...]] = []
        for size in reversed(sizes):
            room = budget - self._round_overhead
            if kept and room < min(self.config.min_turn_tokens, sum(size)):
                break
            question, answer, *others = size
            kept.append(share_room(question, answer, sum(others), room)[: len(size)])
            budget = room - sum(kept[-1])
        return kept[::-1]


def _room(marker: Sequence[list[int]]) -> int:
    """The most tokens of a marker, with a number between its parts."""
    return sum(map(len, marker)) + NUMBER_TOKENS * (len(marker) - 1)


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


def check_open(renderer: Renderer, asked: str, folder: Path) -> None:
    """Raise `UserError` where the tokenizer in `folder` ends every prompt, so that no verdict can follow it."""
    if renderer.closed:
        raise UserError(
            f"{asked} with {folder}: its tokenizer puts an end-of-text token after every prompt, where the verdict "
            "should follow; take out its post-processor's end, or another model"
        )


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
