"""From rewards of single responses to logits of a, b and tie: a Bradley-Terry model with ties, fitted out of fold.

The difference of two rewards becomes logits by a model that is fitted on the votes of the other folds, so that no
conversation's logits know its own vote.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from core.bradley_terry import BradleyTerry
from core.errors import UserError
from core.labels import NO_TIE, Labels, among
from core.records import LABELS, TEST, Conversation
from core.scoring import SCORES
from core.store.parts import NO_FOLD
from teachers.rewards import RESPONSES

log = logging.getLogger(__name__)
CROSS_FIT = pl.Schema({"id": pl.String(), "logits": SCORES["logits"], "judge_fold": pl.Int32()})


def fit_bradley_terry(differences: np.ndarray, votes: np.ndarray, l2: float) -> BradleyTerry:
    """The maximum of the penalised likelihood of `votes` [n, labels] given `differences` r_a - r_b [n, objectives].

    Each row counts one, as vote shares. The penalty is `l2`/2 times the squared weights for differences measured in
    their root mean square (their standard deviation over both orders), so it does not depend on a reward's scale; an
    objective that never differs gets weight 0. One vote for each label is added at difference 0 (Laplace), so that a
    label which nobody chose stays possible. Of two labels, without ties, it is Bradley and Terry's own model. Raises
    `UserError` where there is nothing to fit.
    """
    totals = votes.sum(axis=1, keepdims=True)
    if not len(votes) or not (totals > 0).all() or (votes < 0).any():
        raise UserError(f"of {len(votes)} conversations {(totals <= 0).sum()} have no votes, or a count is negative")
    assert len(differences) == len(votes) and np.isfinite(differences).all()
    scale = np.sqrt(np.mean(differences**2, axis=0))
    scaled = np.divide(differences, scale, out=np.zeros_like(differences), where=scale > 0)
    labels = votes.shape[1]
    level = np.zeros((labels, scaled.shape[1]))
    scaled, shares = np.concatenate([scaled, level]), np.concatenate([votes / totals, np.eye(labels)])
    start = start_of_fit(scaled.shape[1], labels)
    best = minimize(davidson_loss, start, (scaled, shares, l2), "L-BFGS-B", jac=True, options={"ftol": 1e-14})
    if not np.isfinite(best.x).all():
        raise UserError(
            f"teacher.reward_l2={l2}: the weights grow without bound, because rewards and votes always agree"
        )
    weights = np.divide(best.x[:-1], scale, out=np.zeros_like(scale), where=scale > 0)
    return BradleyTerry(weights, float(best.x[-1]))


def start_of_fit(weights: int, labels: int) -> np.ndarray:
    """Where `davidson_loss` is minimised from: without ties, log_tie stays where it is."""
    return np.append(np.zeros(weights), 0.0 if labels == len(LABELS) else NO_TIE)


def davidson_loss(
    parameters: np.ndarray, differences: np.ndarray, shares: np.ndarray, l2: float
) -> tuple[float, np.ndarray]:
    """The negative log-likelihood in nats, a sum over rows, with its penalty, and its gradient.

    `parameters` are the weights [objectives] and log_tie; `shares` [n, labels]. Convex: a linear model's cross-entropy
    and a square.
    """
    weights, log_tie = parameters[:-1], parameters[-1]
    logits = BradleyTerry(weights, log_tie).logits(differences)[:, : shares.shape[1]]
    norm = logsumexp(logits, axis=1, keepdims=True)
    surplus = np.exp(logits - norm) - shares  # of probability over votes, which sum to one
    loss = float(norm.sum() - (shares * logits).sum() + l2 / 2 * weights @ weights)
    slope = differences.T @ (surplus[:, 0] - surplus[:, 1]) / 2 + l2 * weights
    return loss, np.append(slope, surplus[:, 2:].sum())


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


def cross_fit(
    rewards: pl.DataFrame, conversations: Sequence[Conversation], l2: float, labels: Labels = LABELS
) -> pl.DataFrame:
    """Logits of all `conversations` in `CROSS_FIT`, as `cross_fitted` says; tells the log what was fitted."""
    fitted = cross_fitted(rewards, conversations, l2, labels)
    for fold, fit in fitted.fits.items():
        log.info("fold %d left out: weights %s, log tie %.3f", fold, np.round(fit.weights, 4).tolist(), fit.log_tie)
    log.info("log loss on the folds left out: %.4f, of the prior %.4f", fitted.log_loss, fitted.prior_log_loss)
    return fitted.logits


def cross_fitted(
    rewards: pl.DataFrame, conversations: Sequence[Conversation], l2: float, labels: Labels = LABELS
) -> CrossFit:
    """Turn `rewards` (`distill.store.REWARDS`) into logits by models that never saw the votes of the rows they judge.

    Fold k, with votes or without, gets the model fitted on the votes of all other folds; its `judge_fold` is k, as
    that of a teacher trained without fold k. The test split gets the one fitted on all folds, and its votes fit none.
    Raises `UserError` naming conversations that lack a reward or have one that is not finite, and folds for which no
    votes are left.
    """
    differences = reward_differences(rewards, [c.id for c in conversations])
    folds = np.array([c.fold for c in conversations])
    voted = np.array([bool(c.votes) and sum(c.votes or []) > 0 for c in conversations])
    counts = np.array([c.votes if has else [0.0, 0.0, 0.0] for c, has in zip(conversations, voted, strict=True)])
    votes = among(counts, labels)
    shares = votes / np.maximum(votes.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    logits, priors = np.empty((len(votes), len(LABELS))), np.empty(votes.shape)
    fits = {}
    for fold in np.unique(folds).tolist():
        here, others = folds == fold, (folds != fold) & (folds != TEST) & voted
        if not others.any():
            raise UserError(
                f"fold {fold}: no conversation of another fold has votes, to fit the rewards' weights on; "
                "prepare data with votes in at least two folds"
            )
        fits[fold] = fit_bradley_terry(differences[others], votes[others], l2)
        logits[here] = fits[fold].logits(differences[here])
        priors[here] = np.log(shares[others].sum(axis=0) + 1)
    judged = (among(logits, labels), priors)
    losses = [-float((shares * log_softmax(scores, axis=1))[voted].sum(axis=1).mean()) for scores in judged]
    judges = np.where(folds == TEST, NO_FOLD, folds)
    table = {"id": [c.id for c in conversations], "logits": logits.astype(np.float32), "judge_fold": judges}
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
        raise UserError(
            f"{len(lacking)} of {len(ids)} conversations lack the rewards of a response, such as {lacking[:3]}: "
            "run the teacher stage again, it scores what is missing"
        )
    widths = pl.concat([table[response].list.len() for response in RESPONSES]).unique().sort().to_list()
    if len(widths) > 1:
        raise UserError(f"responses have {widths} rewards each: different models wrote them; use overwrite=true")
    a, b = (
        table[response].list.to_array(max(widths, default=0)).to_numpy().astype(np.float64) for response in RESPONSES
    )
    broken = [i for i, row in zip(ids, a - b, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise UserError(f"rewards that are not finite for {broken[:3]}: use scorers.teacher.dtype=fp32 or bf16")
    return np.asarray(a - b)
