"""What the columns of stored opinions hold, by their names alone: which quantity, of which label, in which order.

A name is taken apart into words. One of them names the label (a, b, tie), some the quantity, and the rest are words
that such names are made of: `p_a`, `winner_model_b`, `Logprob of tie`, `prob_model_a_wins`, `logit_a_ba`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.errors import UserError
from core.labels import WITHOUT_TIES
from core.records import LABELS, ORDERS, Order

Quantity = Literal["logits", "log-probabilities", "probabilities", "scores"]
QUANTITIES: tuple[Quantity, ...] = ("logits", "log-probabilities", "probabilities", "scores")
OF_LABELS = {"a": "a", "b": "b", **dict.fromkeys(("tie", "ties", "tied", "draw", "equal", "same"), "tie")}
PROBABILITY = {"p", "pr", "prob", "probs", "proba", "probability", "probabilities", "share"}
LOG_PROBABILITY = {"logprob", "logprobs", "logp", "logproba", "logprobability", "lp"}
OF_QUANTITIES: dict[str, Quantity] = {
    **dict.fromkeys(("logit", "logits"), "logits"),
    **dict.fromkeys(LOG_PROBABILITY, "log-probabilities"),
    **dict.fromkeys(PROBABILITY, "probabilities"),
    **dict.fromkeys(("score", "scores", "reward", "rewards", "rating"), "scores"),
}
FILLING = {
    *("model", "response", "answer", "assistant", "winner", "wins", "win", "won", "better", "preferred", "prefers"),
    *("is", "of", "the", "that", "teacher", "judge", "mean", "pred", "predicted", "order", "and", "for"),
}
ADVICE = (
    "name three columns as in p_a, p_b, p_tie, or logit_..., logprob_...; with _ab and _ba for both orders; or score_a "
    "and score_b; or prompt, response and score"
)


@dataclass(frozen=True)
class Columns:
    """The column of each label; in each order, where the table has a column for each."""

    quantity: Quantity
    of: dict[Order | None, list[str]]  # in the order of `LABELS`

    @property
    def labels(self) -> int:
        return len(next(iter(self.of.values())))


def meaning(name: str) -> tuple[Quantity, str, Order | None] | None:
    """(quantity, label, order) that a column's name tells; None for a name that tells no such thing."""
    words = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower())
    quantities = {OF_QUANTITIES[word] for word in words if word in OF_QUANTITIES}
    if "log" in words and quantities == {"probabilities"}:
        quantities = {"log-probabilities"}
    if not quantities and "winner" in words:  # a submission to Kaggle
        quantities = {"probabilities"}
    labels = [OF_LABELS[word] for word in words if word in OF_LABELS]
    orders = [order for order in ORDERS if order in words]
    known = {*OF_QUANTITIES, *OF_LABELS, *ORDERS, *FILLING, "log"}
    if len(quantities) != 1 or len(labels) != 1 or len(orders) > 1 or not known.issuperset(words):
        return None
    return quantities.pop(), labels[0], orders[0] if orders else None


def columns_of(names: Sequence[str], where: str) -> Columns | None:
    """What the columns called `names` hold; None where they hold no opinions of pairs.

    Of several quantities the first of `QUANTITIES` is taken. Raises `UserError` where two columns say the same, a label
    or an order has none, or a list's positions would have to decide.
    """
    found: dict[Quantity, dict[Order | None, dict[str, str]]] = {}
    for name in names:
        if (told := meaning(name)) is None:
            continue
        quantity, label, order = told
        same = found.setdefault(quantity, {}).setdefault(order, {})
        if label in same:
            raise UserError(f"{where}: columns {same[label]} and {name} both hold the {quantity} of {label}: drop one")
        same[label] = name
    if not found:
        lists = sorted({*names} & {"logits", "probs", "probabilities", "logprobs", "scores"})
        if lists:
            raise UserError(f"{where}: {lists[0]} does not say which of its numbers is of which label: {ADVICE}")
        return None
    quantity = next(q for q in QUANTITIES if q in found)
    whole = WITHOUT_TIES if quantity == "scores" else LABELS
    orders: dict[Order | None, list[str]] = {}
    for order, columns in found[quantity].items():
        labels = [label for label in whole if label in columns]
        if labels not in ([*LABELS], [*WITHOUT_TIES]):
            lacking = [label for label in whole if label not in columns]
            raise UserError(f"{where}: no column holds the {quantity} of {lacking[0]}, beside {columns}: {ADVICE}")
        orders[order] = [columns[label] for label in labels]
    if set(orders) not in ({None}, {*ORDERS}) or len({len(columns) for columns in orders.values()}) > 1:
        raise UserError(f"{where}: the columns {orders} are not those of one order or of both alike: {ADVICE}")
    return Columns(quantity, orders)
