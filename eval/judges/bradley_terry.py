"""A judge that reads the names of the two models and not a word of their answers, for scale."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy.optimize import minimize

from core.labels import Labels, among
from core.records import LABELS, Conversation
from core.scoring import SCORES
from eval.judges.baselines import prior
from eval.metrics import shares
from teachers.bradley_terry import BradleyTerry, davidson_loss, start_of_fit

PRIOR = 1.0  # of ratings: their inverse variance about the mean, in nats; a deviation of 174 points


def bradley_terry(
    train: Sequence[Conversation], scored: Sequence[Conversation], labels: Labels = LABELS
) -> pl.DataFrame:
    """A judge that knows only who wrote the answers: `id`, `order`, `logits` (own a and b), as other baselines.

    Ratings of models and one rate of ties are fitted to the votes of `train` (`teachers.bradley_terry`, Davidson 1970);
    they are normal about their mean with precision `PRIOR`, where a model that never met a vote stays. As in
    `prior` one vote for each label is added. Conversations without both names get that prior; so do all if
    none of `train` has them.
    """
    scores = prior(train, scored, labels)
    games = [c for c in train if c.votes is not None and _named(c)]
    rated = [c for c in scored if _named(c)] if games else []
    if not rated:
        return scores
    number = {model: i for i, model in enumerate(sorted({str(m) for c in games for m in (c.model_a, c.model_b)}))}
    differences = np.concatenate([_differences(games, number), np.zeros((len(labels), len(number)))])
    votes = among(np.array([c.votes for c in games]), labels)
    share, start = np.concatenate([shares(votes), np.eye(len(labels))]), start_of_fit(len(number), len(labels))
    best = minimize(davidson_loss, start, (differences, share, PRIOR), "L-BFGS-B", jac=True, options={"ftol": 1e-14})
    logits = BradleyTerry(best.x[:-1], float(best.x[-1])).logits(_differences(rated, number))
    named = {"id": [c.id for c in rated], "named": logits.astype(np.float32)}
    table = pl.DataFrame(named, schema={"id": pl.String, "named": SCORES["logits"]})
    joined = scores.join(table, on="id", how="left", maintain_order="left")
    return joined.select("id", "order", pl.coalesce("named", "logits").alias("logits"))


def _named(conversation: Conversation) -> bool:
    return conversation.model_a is not None and conversation.model_b is not None


def _differences(conversations: Sequence[Conversation], number: Mapping[str, int]) -> np.ndarray:
    """float64 [n, models]: 1 for the model of response a, -1 for that of b, nothing for models without a number."""
    differences = np.zeros((len(conversations), len(number)))
    for row, c in zip(differences, conversations, strict=True):
        for model, sign in ((c.model_a, 1), (c.model_b, -1)):
            if model is not None and model in number:
                row[number[model]] += sign
    return differences
