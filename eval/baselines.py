"""Two judges that read nothing, for scale: vote frequencies alone, and a linear model on how the responses look.

A language model that does not beat `surface` has learned the length of answers. Both give frames in the columns of
`scoring.SCORES` that any judge has: `id`, `order`, `logits` in the conversation's own a and b.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from core.data.table import to_frame
from core.errors import UserError
from core.records import LABELS, ORDERS, Conversation, Order
from core.scoring import SCORES, to_own_order
from eval.metrics import shares

LETTER = r"[\p{L}\p{N}_]"
WORD = f"{LETTER}+"
REFUSAL = (
    r"(?i)\bI(?:.m| am) sorry|\bI apologi[sz]e|\bas an AI\b|\bas a language model|\bI can(?:no|.)t\b"  # any apostrophe
)
COUNTED = {
    "list_items": r"(?m)^\s*(?:[-*+•]|\d+[.)])\s",
    "code_blocks": r"(?m)^\s*```[^`]*$",  # fences: two a block
    "headings": r"(?m)^#{1,6}\s",
    "bold": r"\*\*[^*\n]+\*\*",
    "digits": r"\p{Nd}",
    "question_marks": r"[?\x{FF1F}]",
    "refusals": REFUSAL,
}


def prior(train: Sequence[Conversation], held_out: Sequence[Conversation]) -> pl.DataFrame:
    """The log frequencies of a, b and tie among the training votes, for every conversation and in both orders.

    The frequencies of a and b are kept as measured, not made equal: people do favour a side, and a baseline that
    knows this is the harder one to beat. The judge does not look at the order it is shown, so its flip rate is 0 and
    its average over orders is the prior itself. One vote for each label is added (Laplace), so that a label which
    nobody chose stays possible.
    """
    _, votes = _voted(train)
    frequencies = (shares(votes).sum(axis=0) + 1) / (len(votes) + len(LABELS))
    logits = np.tile(np.log(frequencies), (len(held_out), 1))
    return _scores(held_out, {order: logits for order in ORDERS})


def surface(train: Sequence[Conversation], held_out: Sequence[Conversation]) -> pl.DataFrame:
    """Multinomial logistic regression on surface features of the texts (see `surface_features`).

    Fitted to both orders of every training conversation with its vote shares as weights, so that what it learns is
    the same for both sides: it carries no position bias. As in `prior` one vote for each label is added, on the
    average conversation. The ridge penalty is that of independent normal coefficients of variance 1 / features, so
    that all of them together are expected to move a logit by about one; this keeps small sets from being overfitted.
    The newton-cholesky solver finds the optimum in a few steps where there are far more rows than features.
    """
    train, votes = _voted(train)
    features = surface_features(train)
    both = np.concatenate([features[order] for order in ORDERS])
    targets = np.concatenate([to_own_order(shares(votes), order) for order in ORDERS]) / len(ORDERS)
    row, label = np.nonzero(targets)
    average = np.tile(both.mean(axis=0), (len(LABELS), 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / both.shape[1], solver="newton-cholesky"))
    model.fit(
        np.concatenate([both[row], average]),
        np.concatenate([label, np.arange(len(LABELS))]),
        logisticregression__sample_weight=np.concatenate([targets[row, label], np.ones(len(LABELS))]),
    )
    shown = surface_features(held_out)
    return _scores(held_out, {order: to_own_order(model.decision_function(shown[order]), order) for order in ORDERS})


def surface_features(conversations: Sequence[Conversation]) -> dict[Order, np.ndarray]:
    """How the two responses look, as shown in each order: float64 [n, features].

    Each property of a response appears four times, every time on the scale log(1 + x), because counts have long tails
    and one long answer would rule a linear model: of the first, of the second, their difference with its sign, and
    their ratio. The number of rounds, the length of the prompt and whether the responses are identical belong to the
    pair.
    """
    texts = to_frame(conversations).select(pl.col("prompt", "response_a", "response_b").list.join("\n\n"))
    sides = {side: texts.select(_properties(f"response_{side}")).to_numpy() for side in "ab"}
    identical = texts.select(pl.col("response_a") == pl.col("response_b")).to_numpy()
    prompts = texts["prompt"].str.len_chars().to_list()
    extent = [(len(c.prompt), characters) for c, characters in zip(conversations, prompts, strict=True)]
    pair = np.column_stack([np.log1p(extent), identical])
    shown = {}
    for order in ORDERS:
        first, second = (sides[side] for side in order)
        gap = first - second
        log_first, log_second = np.log1p(first), np.log1p(second)
        shown[order] = np.column_stack(
            [log_first, log_second, np.sign(gap) * np.log1p(np.abs(gap)), log_first - log_second, pair]
        )
    return shown


def _properties(column: str) -> list[pl.Expr]:
    """The properties of one response that `surface_features` compares, all of them zero or above."""
    text = pl.col(column)
    characters = text.str.len_chars()
    words = text.str.to_lowercase().str.extract_all(WORD)
    asked = pl.col("prompt").str.to_lowercase().str.extract_all(WORD)
    at_least_one = words.list.len().clip(1)
    properties = {
        "characters": characters,
        "words": words.list.len(),
        "lines": text.str.count_matches("\n"),
        **{name: text.str.count_matches(pattern) for name, pattern in COUNTED.items()},
        "punctuation_share": text.str.count_matches(r"\p{P}") / characters.clip(1),
        "prompt_overlap": words.list.set_intersection(asked).list.len() / words.list.n_unique().clip(1),
        "word_length": text.str.count_matches(LETTER) / at_least_one,
        "type_token_ratio": words.list.n_unique() / at_least_one,
    }
    return [value.cast(pl.Float64).alias(name) for name, value in properties.items()]


def _voted(train: Sequence[Conversation]) -> tuple[list[Conversation], np.ndarray]:
    """The conversations that somebody voted on, and their votes [n, 3]. Raises `UserError` where there are none."""
    voted = [c for c in train if c.votes is not None]
    if not voted:
        raise UserError(f"none of the {len(train)} training conversations has votes: a baseline has nothing to fit")
    return voted, np.array([c.votes for c in voted])


def _scores(held_out: Sequence[Conversation], logits: dict[Order, np.ndarray]) -> pl.DataFrame:
    """`id`, `order` and `logits` (own a and b) of every conversation, first all in order "ab", then all in "ba"."""
    columns = {
        "id": [c.id for _ in ORDERS for c in held_out],
        "order": [order for order in ORDERS for _ in held_out],
        "logits": np.concatenate([logits[order] for order in ORDERS]).astype(np.float32),
    }
    return pl.DataFrame(columns, schema={name: SCORES[name] for name in columns})
