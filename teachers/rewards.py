"""Reward models as judges: what they are shown, how they are loaded, and what their rewards say of three labels.

A reward model (Skywork-Reward, FsfairX: one output; ArmoRM: 19 objectives) scores each response alone, as the last
turn of a chat. The difference of two rewards becomes logits of a, b and tie by a model that is fitted on votes of the
other folds, so that no conversation's logits know its own vote.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import jinja2
import numpy as np
import polars as pl
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from distill.models import layer_of, linked_classifier
from distill.prompts import CHUNK, share_room
from distill.records import LABELS, Conversation
from distill.scoring import SCORES

log = logging.getLogger(__name__)
T = TypeVar("T")
Response = Literal["a", "b"]
RESPONSES: tuple[Response, ...] = ("a", "b")
LAYOUT_VERSION = 1  # raise it when the same inputs would give other ids: it is part of every prompt hash
SLOT = "\ue000{}\ue001"  # stands for a text while the template is rendered; no template holds private-use characters
CUT = " [...] "
DATE = "26 Jul 2024"  # Llama 3.1's own; Llama 3.2's template would take today's, and a run could not go on tomorrow
HEADS = ("score.weight", "regression_layer.weight", "v_head.summary.weight")  # sequence classifier, ArmoRM, TRL
FEW_OUTPUTS = 64  # a matrix with at most so many rows may be a head
CROSS_FIT = pl.Schema({"id": pl.String(), "logits": SCORES["logits"], "judge_fold": pl.Int32()})


@dataclass(frozen=True, slots=True)
class RenderedResponse:
    """One response as the last turn of its chat. `truncated`: something of the conversation was left out."""

    id: str
    response: Response
    ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class Layout:
    """What a chat template puts around the texts of so many rounds.

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
    `DATE`) as long as no text of the rounds shown holds a special token of the tokenizer or a marker of the template.
    Where one does, or a text is shortened, the texts of both responses are tokenised apart from the template, markers
    in them as plain text, so that no text can pose as a turn; there the tokens where a text meets the template may
    differ from those of the whole (SentencePiece puts a space before each part). A template that looks into its texts,
    as reasoning models' do to drop thoughts, is not followed in that.

    What does not fit is left out for both responses alike, so that their rewards can be compared: the oldest rounds
    first, then the middle of the last question, which keeps a third of the room at least, and of the answer.
    """

    def __init__(self, tokenizer_folder: Path, max_tokens: int):
        """Raises `ValueError` where the tokenizer has no usable chat template, or the budget is too small for it."""
        self.max_tokens = max_tokens
        self._folder = tokenizer_folder
        self._chat = AutoTokenizer.from_pretrained(tokenizer_folder)
        if not self._chat.chat_template:
            raise ValueError(
                f"the tokenizer in {tokenizer_folder} has no chat template, in which a reward model reads a response: "
                "save the one it was trained with as chat_template.jinja there"
            )
        self._layouts: dict[int, Layout] = {}
        self._whole = Tokenizer.from_str(self._chat.backend_tokenizer.to_str())
        self._whole.no_truncation()
        self._whole.no_padding()
        description = json.loads(self._whole.to_str())
        shown = "".join(self._layout(2).pieces)
        for token in description["added_tokens"]:  # also where a template marks turns with tokens that are not special
            token["special"] |= bool(token["content"].strip()) and token["content"] in shown
        self._markers = {token["id"] for token in description["added_tokens"] if token["special"]}
        self._plain = Tokenizer.from_str(json.dumps(description))
        self._plain.encode_special_tokens = True
        self._cut = _encode(self._plain, [CUT])[0]
        minimum = self._layout(1).overhead + 3 * (len(self._cut) + 2)
        if max_tokens < minimum:
            raise ValueError(f"prompt.max_tokens={max_tokens}: the chat template of {tokenizer_folder} needs {minimum}")

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

    def _is_safe(self, chats: Sequence[list[int]], rounds: int) -> bool:
        """Whether chats that were tokenised as a whole fit, and all of their markers are the template's."""
        own = sum(token in self._markers for piece in self._layout(rounds).ids for token in piece)
        return all(len(i) <= self.max_tokens and sum(token in self._markers for token in i) == own for i in chats)

    def _render_apart(self, conversation: Conversation) -> tuple[list[list[int]], list[bool]]:
        rounds = len(conversation.prompt)
        chats = [_interleave(conversation.prompt, side) for side in (conversation.response_a, conversation.response_b)]
        sides = [_encode(self._plain, self._layout(rounds).stripped(turns)) for turns in chats]
        for kept in range(rounds, 0, -1):
            layout, shown = self._layout(kept), [side[-2 * kept :] for side in sides]
            if layout.overhead + max(sum(map(len, side)) for side in shown) <= self.max_tokens:
                whole = _encode(self._whole, [layout.chat(turns[-2 * kept :]) for turns in chats])
                pair = whole if self._is_safe(whole, kept) else [self._assemble(side) for side in shown]
                return pair, [kept < rounds] * 2
        room = self.max_tokens - layout.overhead
        question = share_room(len(shown[0][0]), max(len(answer) for _, answer in shown), 0, room)[0]
        short = [[_shorten(q, question, self._cut), _shorten(a, room - question, self._cut)] for q, a in shown]
        truncated = [rounds > 1 or side != full for side, full in zip(short, shown, strict=True)]
        return [self._assemble(side) for side in short], truncated

    def _assemble(self, texts: Sequence[list[int]]) -> list[int]:
        parts = _interleave(self._layout(len(texts) // 2).ids, [*texts, []])
        ids = [token for part in parts for token in part]
        assert len(ids) <= self.max_tokens
        return ids

    def _layout(self, rounds: int) -> Layout:
        if rounds not in self._layouts:
            pieces, padded = self._pieces(rounds, ""), self._pieces(rounds, " ")
            strips = tuple(piece == other for piece, other in zip(pieces[:-1], padded[:-1], strict=True))
            self._layouts[rounds] = Layout(pieces, tuple(_encode(self._whole, pieces)), strips)
        return self._layouts[rounds]

    def _pieces(self, rounds: int, padding: str) -> tuple[str, ...]:
        slots = [SLOT.format(i) for i in range(2 * rounds)]
        turns = [{"role": ("user", "assistant")[i % 2], "content": padding + slot} for i, slot in enumerate(slots)]
        where = f"the chat template of {self._folder}"
        try:
            chat = self._chat.apply_chat_template(turns, tokenize=False, add_generation_prompt=False, date_string=DATE)
        except jinja2.TemplateError as error:
            raise ValueError(f"{where} cannot show {rounds} rounds of user and assistant: {error}") from error
        rest, pieces = str(chat), []
        for slot in slots:
            piece, found, rest = rest.partition(slot)
            if not found or slot in rest:
                raise ValueError(f"{where} does not show each text of {rounds} rounds once and in order: use another")
            pieces.append(piece)
        return (*pieces, rest)


def as_classifier(model: Path, folder: Path) -> Path:
    """A folder that transformers and vLLM load as a sequence classifier whose outputs are the rewards.

    That is `model` itself where it is one. Else `folder` gets links to its shards and its head as `score.weight`. Of
    ArmoRM the 19 objectives stay and the gating network is dropped: `fit_bradley_terry` weighs them by your votes. Of
    a TRL value head the bias is dropped, which cancels in the difference of two rewards. A shard that holds the old
    head is copied without it, because vLLM refuses tensors that it does not know.

    Raises `ValueError` that lists what may be the head where `model` has none of `HEADS`.
    """
    config = json.loads((model / "config.json").read_text())
    places: dict[str, tuple[Path, list[int]]] = {}
    for shard in sorted(model.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            places |= {name: (shard, file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    head = next((name for name in HEADS if name in places), None)
    if head is None:
        candidates = {
            name: shape
            for name, (_, shape) in places.items()
            if len(shape) == 2 and shape[0] <= FEW_OUTPUTS and layer_of(name) < 0
        }
        raise ValueError(
            f"{model} has no reward head that is known here ({', '.join(HEADS)}); of its {len(places)} tensors these "
            f"may be one: {candidates}. If one is, save the model with that tensor named score.weight"
        )
    if not config.get("architectures"):
        raise ValueError(
            f"{model}/config.json names no architectures: add the class of the model, such as LlamaForCausalLM"
        )
    if head == HEADS[0] and config["architectures"][0].endswith("ForSequenceClassification"):
        return model
    shard, (outputs, _) = places[head]
    labels = list(config.get("id2label", {}).values())
    if len(labels) != outputs:
        labels = [f"reward_{i}" for i in range(outputs)]
    with safe_open(shard, "pt") as file:
        linked_classifier(model, folder, {HEADS[0]: file.get_tensor(head)}, labels)
    _copy_shards_with_heads(folder)
    return folder


def _copy_shards_with_heads(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for link in (path for path in folder.glob("*.safetensors") if path.is_symlink()):
        with safe_open(link, "pt") as file:
            names = list(file.keys())
            if all(index.get(name) == link.name or name.startswith("lm_head.") for name in names):  # vLLM skips lm_head
                continue
            tensors = {name: file.get_tensor(name) for name in names if index.get(name) == link.name}
        link.unlink()
        if tensors:
            save_file(tensors, link, metadata={"format": "pt"})


@dataclass(frozen=True)
class BradleyTerry:
    """P(a), P(b) and P(tie) in proportion to exp(s/2), exp(-s/2) and exp(log_tie), s = `weights` · (r_a - r_b).

    Bradley and Terry's (1952) model of paired comparisons with ties as Davidson (1970), "On Extending the Bradley-Terry
    Model to Accommodate Ties", added them. `weights` [objectives] are per unit of each reward.
    """

    weights: np.ndarray
    log_tie: float

    def logits(self, differences: np.ndarray) -> np.ndarray:
        """float64 [n, 3] for differences r_a - r_b [n, objectives]; negated, they give a and b exchanged."""
        strength = differences @ self.weights
        return np.column_stack([strength / 2, -strength / 2, np.full(len(differences), self.log_tie)])


def fit_bradley_terry(differences: np.ndarray, votes: np.ndarray, l2: float) -> BradleyTerry:
    """The maximum of the penalised likelihood of `votes` [n, 3] given `differences` r_a - r_b [n, objectives].

    Each row counts one, as vote shares. The penalty is `l2`/2 times the squared weights for differences measured in
    their root mean square (their standard deviation over both orders), so it does not depend on a reward's scale; an
    objective that never differs gets weight 0. One vote for each label is added at difference 0 (Laplace), so that a
    label which nobody chose stays possible. Raises `ValueError` where there is nothing to fit or `l2` is negative.
    """
    if l2 < 0:
        raise ValueError(f"teacher.reward_l2={l2}: a penalty is zero or above")
    totals = votes.sum(axis=1, keepdims=True)
    if not len(votes) or not (totals > 0).all() or (votes < 0).any():
        raise ValueError(f"of {len(votes)} conversations {(totals <= 0).sum()} have no votes, or a count is negative")
    assert len(differences) == len(votes) and np.isfinite(differences).all()
    scale = np.sqrt(np.mean(differences**2, axis=0))
    scaled = np.divide(differences, scale, out=np.zeros_like(differences), where=scale > 0)
    level = np.zeros((len(LABELS), scaled.shape[1]))
    scaled, shares = np.concatenate([scaled, level]), np.concatenate([votes / totals, np.eye(len(LABELS))])
    start = np.zeros(scaled.shape[1] + 1)
    best = minimize(davidson_loss, start, (scaled, shares, l2), "L-BFGS-B", jac=True, options={"ftol": 1e-14})
    if not np.isfinite(best.x).all():
        raise ValueError(
            f"teacher.reward_l2={l2}: the weights grow without bound, because rewards and votes always agree"
        )
    weights = np.divide(best.x[:-1], scale, out=np.zeros_like(scale), where=scale > 0)
    return BradleyTerry(weights, float(best.x[-1]))


def davidson_loss(
    parameters: np.ndarray, differences: np.ndarray, shares: np.ndarray, l2: float
) -> tuple[float, np.ndarray]:
    """The negative log-likelihood in nats, a sum over rows, with its penalty, and its gradient.

    `parameters` are the weights [objectives] and log_tie. Convex: a linear model's cross-entropy and a square.
    """
    weights, log_tie = parameters[:-1], parameters[-1]
    logits = BradleyTerry(weights, log_tie).logits(differences)
    norm = logsumexp(logits, axis=1, keepdims=True)
    surplus = np.exp(logits - norm) - shares  # of probability over votes, which sum to one
    loss = float(norm.sum() - (shares * logits).sum() + l2 / 2 * weights @ weights)
    slope = differences.T @ (surplus[:, 0] - surplus[:, 1]) / 2 + l2 * weights
    return loss, np.append(slope, surplus[:, 2].sum())


@dataclass(frozen=True)
class CrossFit:
    """Logits in `CROSS_FIT`, the model behind each `judge_fold`, and what they are worth on the folds left out.

    `log_loss` and `prior_log_loss` are means over all conversations with votes, in nats; the prior is the frequency of
    each label in the other folds.
    """

    logits: pl.DataFrame
    fits: dict[int, BradleyTerry]
    log_loss: float
    prior_log_loss: float


def cross_fit(rewards: pl.DataFrame, conversations: Sequence[Conversation], l2: float) -> pl.DataFrame:
    """Logits of all `conversations` in `CROSS_FIT`, as `cross_fitted` says; tells the log what was fitted."""
    fitted = cross_fitted(rewards, conversations, l2)
    for fold, fit in fitted.fits.items():
        log.info("fold %d left out: weights %s, log tie %.3f", fold, np.round(fit.weights, 4).tolist(), fit.log_tie)
    log.info("log loss on the folds left out: %.4f, of the prior %.4f", fitted.log_loss, fitted.prior_log_loss)
    return fitted.logits


def cross_fitted(rewards: pl.DataFrame, conversations: Sequence[Conversation], l2: float) -> CrossFit:
    """Turn `rewards` (`distill.store.REWARDS`) into logits by models that never saw the votes of the rows they judge.

    Fold k, with votes or without, gets the model fitted on the votes of all other folds; its `judge_fold` is k, as
    that of a teacher trained without fold k. Raises `ValueError` naming conversations that lack a reward or have one
    that is not finite, and folds for which no votes are left.
    """
    differences = reward_differences(rewards, [c.id for c in conversations])
    folds = np.array([c.fold for c in conversations])
    voted = np.array([bool(c.votes) and sum(c.votes or []) > 0 for c in conversations])
    votes = np.array([c.votes if has else [0.0, 0.0, 0.0] for c, has in zip(conversations, voted, strict=True)])
    shares = votes / np.maximum(votes.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    logits, priors = np.empty((2, *votes.shape))
    fits = {}
    for fold in np.unique(folds).tolist():
        here, others = folds == fold, (folds != fold) & voted
        if not others.any():
            raise ValueError(
                f"fold {fold}: no conversation of another fold has votes, to fit the rewards' weights on; "
                "prepare data with votes in at least two folds"
            )
        fits[fold] = fit_bradley_terry(differences[others], votes[others], l2)
        logits[here] = fits[fold].logits(differences[here])
        priors[here] = np.log(shares[others].sum(axis=0) + 1)
    losses = [-float((shares * log_softmax(scores, axis=1))[voted].sum(axis=1).mean()) for scores in (logits, priors)]
    table = {"id": [c.id for c in conversations], "logits": logits.astype(np.float32), "judge_fold": folds}
    return CrossFit(pl.DataFrame(table, schema=CROSS_FIT), fits, *losses)


def reward_differences(rewards: pl.DataFrame, ids: Sequence[str]) -> np.ndarray:
    """float64 [len(ids), objectives]: the rewards of response a minus those of response b, joined by id."""
    table = pl.DataFrame({"id": ids}, schema={"id": pl.String})
    for response in RESPONSES:
        side = rewards.filter(pl.col("response") == response).select("id", pl.col("rewards").alias(response))
        table = table.join(side, on="id", how="left", maintain_order="left")
    assert len(table) == len(ids), "a response has more than one row of rewards"
    lacking = table.filter(pl.any_horizontal(pl.col(*RESPONSES).is_null()))["id"].to_list()
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(ids)} conversations lack the rewards of a response, such as {lacking[:3]}: "
            "run the teacher stage again, it scores what is missing"
        )
    widths = pl.concat([table[response].list.len() for response in RESPONSES]).unique().sort().to_list()
    if len(widths) > 1:
        raise ValueError(f"responses have {widths} rewards each: different models wrote them; use overwrite=true")
    a, b = (
        table[response].list.to_array(max(widths, default=0)).to_numpy().astype(np.float64) for response in RESPONSES
    )
    broken = [i for i, row in zip(ids, a - b, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise ValueError(f"rewards that are not finite for {broken[:3]}: use teacher.scorer.dtype=fp32 or bf16")
    return np.asarray(a - b)


def _interleave(first: Sequence[T], second: Sequence[T]) -> list[T]:
    return [item for pair in zip(first, second, strict=True) for item in pair]


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _shorten(text: list[int], length: int, cut: list[int]) -> list[int]:
    """`text` in `length` tokens, with `cut` in place of its middle."""
    if len(text) <= length:
        return text
    tail = (length - len(cut)) // 2
    return text[: length - len(cut) - tail] + cut + text[-tail:]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
