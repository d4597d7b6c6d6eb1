"""Two judges that read nothing, for scale: vote frequencies alone, and a linear model on surface features.

A language model that does not beat `surface` has learned the length of answers. Both give frames in the columns of
`scoring.SCORES` that any judge has: `id`, `order`, `logits` in the conversation's own a and b.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from core.errors import UserError
from core.labels import NO_TIE, Labels, among, with_tie
from core.records import LABELS, ORDERS, Conversation, Order
from core.scoring import SCORES, to_own_order
from eval.metrics import shares
from eval.surface_features import surface_features


def prior(train: Sequence[Conversation], scored: Sequence[Conversation], labels: Labels = LABELS) -> pl.DataFrame:
    """The log frequencies of the `labels` among the training votes, for every conversation and in both orders.

    The frequencies of a and b are kept as measured, not made equal: people do favour a side, and a baseline that
    knows this is the harder one to beat. The judge does not look at the order it is shown, so its flip rate is 0 and
    its average over orders is the prior itself. One vote for each label is added (Laplace), so that a label which
    nobody chose stays possible.
    """
    _, votes = _voted(train, labels)
    frequencies = (shares(votes).sum(axis=0) + 1) / (len(votes) + len(labels))
    logits = np.tile(np.log(frequencies), (len(scored), 1))
    return _scores(scored, {order: logits for order in ORDERS})


def surface(train: Sequence[Conversation], scored: Sequence[Conversation], labels: Labels = LABELS) -> pl.DataFrame:
    """Multinomial logistic regression on surface features of the texts (see `surface_features`).

    Fitted to both orders of every training conversation with its vote shares as weights, so that what it learns is
    the same for both sides: it carries no position bias. As in `prior` one vote for each label is added, on the
    average conversation. The ridge penalty is that of independent normal coefficients of variance 1 / features, so
    that all of them together are expected to move a logit by about one; this keeps small sets from being overfitted.
    The newton-cholesky solver finds the optimum in a few steps where there are far more rows than features.
    """
    train, votes = _voted(train, labels)
    features = surface_features(train)
    both = np.concatenate([features[order] for order in ORDERS])
    own = with_tie(shares(votes), 0)
    targets = np.concatenate([to_own_order(own, order) for order in ORDERS]) / len(ORDERS)
    row, label = np.nonzero(targets)
    average = np.tile(both.mean(axis=0), (len(labels), 1))
    # Of two labels scikit-learn fits one coefficient a feature, the difference of two: twice the variance.
    variance = (1 if len(labels) == len(LABELS) else 2) / both.shape[1]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=variance, solver="newton-cholesky"))
    model.fit(
        np.concatenate([both[row], average]),
        np.concatenate([label, np.arange(len(labels))]),
        logisticregression__sample_weight=np.concatenate([targets[row, label], np.ones(len(labels))]),
    )
    shown = {order: _three_logits(model.decision_function(of)) for order, of in surface_features(scored).items()}
    return _scores(scored, {order: to_own_order(logits, order) for order, logits in shown.items()})


def _three_logits(decisions: np.ndarray) -> np.ndarray:
    """What scikit-learn decides, as logits [n, 3]: of two labels it gives one logit [n], of the second."""
    return decisions if decisions.ndim == 2 else with_tie(np.column_stack([-decisions / 2, decisions / 2]), NO_TIE)


def _voted(train: Sequence[Conversation], labels: Labels) -> tuple[list[Conversation], np.ndarray]:
    """The conversations that somebody voted on, and their votes [n, labels]. Raises `UserError` where nobody did."""
    voted = [c for c in train if c.votes is not None]
    if not voted:
        raise UserError(f"none of the {len(train)} training conversations has votes: a baseline has nothing to fit")
    return voted, among(np.array([c.votes for c in voted]), labels)


def _scores(scored: Sequence[Conversation], logits: dict[Order, np.ndarray]) -> pl.DataFrame:
    """`id`, `order` and `logits` (own a and b) of every conversation, first all in order "ab", then all in "ba"."""
    columns = {
        "id": [c.id for _ in ORDERS for c in scored],
        "order": [order for order in ORDERS for _ in scored],
        "logits": np.concatenate([with_tie(logits[order], NO_TIE) for order in ORDERS]).astype(np.float32),
    }
    return pl.DataFrame(columns, schema={name: SCORES[name] for name in columns})
