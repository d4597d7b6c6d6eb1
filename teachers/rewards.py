"""Reward models as judges: what they are shown, and how they are loaded.

A reward model (Skywork-Reward, FsfairX: one output; ArmoRM: 19 objectives) scores each response alone, as the last
turn of a chat. `teachers/bradley_terry.py` turns the difference of two rewards into logits of a, b and tie.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from core.chat_templates import SLOT, pieces_around
from core.errors import UserError
from core.locks import alone
from core.models.architecture import head_of, layer_of
from core.models.linking import head_tensors, linked_classifier
from core.prompt_markers import without_markers
from core.prompts import CHUNK, share_room, shorten
from core.records import Conversation

T = TypeVar("T")
Response = Literal["a", "b"]
RESPONSES: tuple[Response, ...] = ("a", "b")
LAYOUT_VERSION = 1  # raise it when the same inputs would give other ids: it is part of every prompt hash
CUT = " [...] "
OTHER_HEADS = ("regression_layer.weight", "v_head.summary.weight")  # beside a classifier's own: ArmoRM, TRL
FEW_OUTPUTS = 64  # a matrix with at most so many rows may be a head


@dataclass(frozen=True, slots=True)
class RenderedResponse:
    """One response as the last turn of its chat. `truncated`: something of the conversation was left out."""

    id: str
    response: Response
    ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class Layout:
    """What a chat template puts around the texts of so many turns.

    `pieces` are one more than texts, `ids` their tokens; `strips` says of each text whether the template strips it.
    """

    pieces: tuple[str, ...]
    ids: tuple[list[int], ...]
    strips: tuple[bool, ...]

    @property
    def overhead(self) -> int:
        return sum(map(len, self.ids))

    def stripped(self, texts: Sequence[str]) -> list[str]:
        return [text.strip() if strip else text for text, strip in zip(texts, self.strips, strict=True)]

    def chat(self, texts: Sequence[str]) -> str:
        """The whole chat, as the template writes it."""
        return "".join(_interleave(self.pieces, [*self.stripped(texts), ""]))


class RewardRenderer:
    """Renders both responses of a conversation as chats in the model's own template, within a budget of tokens.

    The ids are those of transformers' `apply_chat_template` (without a generation prompt, `date_string` fixed to
    `core.chat_templates.DATE`) as long as no text of the turns shown holds a special token of the tokenizer or a marker
    of the template. Where one does, or a text is shortened, the texts of both responses are tokenised apart from the
    template, markers in them as plain text, so that no text can pose as a turn; there the tokens where a text meets the
    template may differ from those of the whole (SentencePiece puts a space before each part). A template that looks
    into its texts, as reasoning models' do to drop thoughts, is not followed in that.

    What does not fit is left out for both responses alike, so that their rewards can be compared: the oldest turns
    first, then the middle of the last question, which keeps a third of the room at least, and of the answer.
    """

    def __init__(self, tokenizer_folder: Path, max_tokens: int):
        """Raises `UserError` where the tokenizer has no usable chat template, or the budget is too small for it."""
        self.max_tokens = max_tokens
        self._folder = tokenizer_folder
        self._chat = AutoTokenizer.from_pretrained(tokenizer_folder)
        if not self._chat.chat_template:
            raise UserError(
                f"the tokenizer in {tokenizer_folder} has no chat template, in which a reward model reads a response: "
                "save the one it was trained with as chat_template.jinja there"
            )
        self._layouts: dict[int, Layout] = {}
        self._whole = Tokenizer.from_str(self._chat.backend_tokenizer.to_str())
        self._whole.no_truncation()
        self._whole.no_padding()
        self._plain, self._markers = without_markers(self._whole, {t for ids in self._layout(2).ids for t in ids})
        self._cut = _encode(self._plain, [CUT])[0]
        minimum = self._layout(1).overhead + 3 * (len(self._cut) + 2)
        if max_tokens < minimum:
            raise UserError(f"prompt.max_tokens={max_tokens}: the chat template of {tokenizer_folder} needs {minimum}")

    @property
    def hashes(self) -> dict[str, str]:
        """`template`: what stands around the texts; `prompt`: that, the budget and the tokenizer."""
        layouts = [(layout.pieces, layout.strips) for layout in map(self._layout, (1, 2))]
        template = _digest([LAYOUT_VERSION, layouts])
        return {"template": template, "prompt": _digest([template, self.max_tokens, CUT, self._whole.to_str()])}

    def render(self, conversations: Iterable[Conversation]) -> Iterator[RenderedResponse]:
        """Responses a and b of each conversation, in the order given: neighbours, because they share a prefix."""
        remaining = iter(conversations)
        while chunk := list(islice(remaining, CHUNK)):
            chats = [_interleave(c.prompt, answers) for c in chunk for answers in (c.response_a, c.response_b)]
            encoded = iter(_encode(self._whole, [self._layout(len(turns) // 2).chat(turns) for turns in chats]))
            for c in chunk:
                pair, truncated = [next(encoded), next(encoded)], [False, False]
                if not self._is_safe(pair, len(c.prompt)):
                    pair, truncated = self._render_apart(c)
                for response, ids, cut in zip(RESPONSES, pair, truncated, strict=True):
                    yield RenderedResponse(c.id, response, ids, cut)

    def _is_safe(self, chats: Sequence[list[int]], count: int) -> bool:
        """Whether chats that were tokenised as a whole fit, and all of their markers are the template's."""
        own = sum(token in self._markers for piece in self._layout(count).ids for token in piece)
        return all(len(i) <= self.max_tokens and sum(token in self._markers for token in i) == own for i in chats)

    def _render_apart(self, conversation: Conversation) -> tuple[list[list[int]], list[bool]]:
        count = len(conversation.prompt)
        chats = [_interleave(conversation.prompt, side) for side in (conversation.response_a, conversation.response_b)]
        sides = [_encode(self._plain, self._layout(count).stripped(turns)) for turns in chats]
        for kept in range(count, 0, -1):
            layout, shown = self._layout(kept), [side[-2 * kept :] for side in sides]
            if layout.overhead + max(sum(map(len, side)) for side in shown) <= self.max_tokens:
                whole = _encode(self._whole, [layout.chat(turns[-2 * kept :]) for turns in chats])
                pair = whole if self._is_safe(whole, kept) else [self._assemble(side) for side in shown]
                return pair, [kept < count] * 2
        room = self.max_tokens - layout.overhead
        question = share_room(len(shown[0][0]), max(len(answer) for _, answer in shown), 0, room)[0]
        short = [[shorten(q, question, self._cut), shorten(a, room - question, self._cut)] for q, a in shown]
        truncated = [count > 1 or side != full for side, full in zip(short, shown, strict=True)]
        return [self._assemble(side) for side in short], truncated

    def _assemble(self, texts: Sequence[list[int]]) -> list[int]:
        parts = _interleave(self._layout(len(texts) // 2).ids, [*texts, []])
        ids = [token for part in parts for token in part]
        assert len(ids) <= self.max_tokens
        return ids

    def _layout(self, count: int) -> Layout:
        if count not in self._layouts:
            pieces, padded = self._pieces(count, ""), self._pieces(count, " ")
            strips = tuple(piece == other for piece, other in zip(pieces[:-1], padded[:-1], strict=True))
            self._layouts[count] = Layout(pieces, tuple(_encode(self._whole, pieces)), strips)
        return self._layouts[count]

    def _pieces(self, count: int, padding: str) -> tuple[str, ...]:
        return pieces_around(self._chat, self._folder, [SLOT.format(i) for i in range(2 * count)], padding)


def as_classifier(model: Path, folder: Path) -> Path:
    """A folder that transformers and vLLM load as a sequence classifier whose outputs are the rewards.

    That is `model` itself where it is one. Else `folder` gets links to its shards and its head under the classifier's
    name for it. Of ArmoRM the 19 objectives stay and the gating network is dropped: the fit on your votes weighs them.
    Of a TRL value head the bias is dropped, which cancels in the difference of two rewards.

    Raises `UserError` that lists what may be the head where `model` has none that is known.
    """
    config = json.loads((model / "config.json").read_text())
    places: dict[str, tuple[Path, list[int]]] = {}
    for shard in sorted(model.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            places |= {name: (shard, file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    own = f"{head_of(config.get('model_type'))}.weight"
    head = next((name for name in (own, *OTHER_HEADS) if name in places), None)
    if head is None:
        candidates = {
            name: shape
            for name, (_, shape) in places.items()
            if len(shape) == 2 and shape[0] <= FEW_OUTPUTS and layer_of(name) < 0
        }
        known = ", ".join([own, *OTHER_HEADS])
        raise UserError(
            f"{model} has no reward head that is known here ({known}); of its {len(places)} tensors these "
            f"may be one: {candidates}. If one is, save the model with that tensor named {own}"
        )
    if not config.get("architectures"):
        raise UserError(
            f"{model}/config.json names no architectures: add the class of the model, such as LlamaForCausalLM"
        )
    if head == own and config["architectures"][0].endswith("ForSequenceClassification"):
        return model
    shard, (outputs, _) = places[head]
    labels = list(config.get("id2label", {}).values())
    if len(labels) != outputs:
        labels = [f"reward_{i}" for i in range(outputs)]
    with alone(folder, wait=True), safe_open(shard, "pt") as file:
        if not folder.is_dir() or not all(path.exists() for path in folder.iterdir()):  # a link may have lost its file
            linked_classifier(model, folder, head_tensors(config.get("model_type"), file.get_tensor(head)), labels)
    return folder


def _interleave(first: Sequence[T], second: Sequence[T]) -> list[T]:
    return [item for pair in zip(first, second, strict=True) for item in pair]


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
