"""Whether a teacher's probabilities are right: its log loss on votes, and that with the temperature of these.

The temperature of a fold is fitted to the votes of the others (`teachers/mixtures.py`), so that both figures are
cross-validated. A calibrated store holds the scaled logits: it is a mixture of one teacher.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import log_softmax

from core.artefacts.building import Artefact
from core.errors import UserError
from core.labels import Labels, among
from core.records import LABELS, TEST, Conversation
from core.scoring import swap_average
from core.store.parts import clear
from core.store.reading import read_logits
from teachers.mixtures import Mixing, temperatures, write_mixture

log = logging.getLogger(__name__)
SATURATED = 0.1  # nats of median entropy: of two labels, the likelier has 98%
VOTES = pl.Schema({"id": pl.String(), "votes": pl.Array(pl.Float64, len(LABELS))})
ENOUGH = 20  # voted conversations, for a temperature to mean something


def tell_calibration(store: Path, rows: Sequence[Conversation], labels: Labels, scaled: bool | None) -> None:
    """Log a teacher's log loss on votes, what temperatures do to it, and warn of one that is surer than they allow.

    Only votes outside the test split count, on conversations that their judge has not learned from. `scaled`: the
    logits are going to be divided by these temperatures.
    """
    scores = read_logits(store, "score with the teacher first")
    averaged = swap_average(scores.filter(~pl.col("in_sample")))
    logits = dict(averaged.select("id", "logits").iter_rows())
    if not logits:
        return
    every = log_softmax(among(np.array(list(logits.values()), dtype=float), labels), axis=1)
    entropy = float(np.median(-(np.exp(every) * every).sum(axis=1)))
    scaling = votes_temperatures(logits, rows, labels)
    if found := log_loss_of_votes(scores, rows, labels):
        loss, voted, guess = found
        told = f"{loss:.4f} on the votes of {voted} conversations not learned from, {guess:.4f} by guessing"
        log.info("%s: log loss %s%s", store, told, f", {scaling}" if scaling else "")
    if entropy < SATURATED and not scaled:
        log.warning(
            "%s: these probabilities are saturated, with a median entropy of %.3g nats: students learn little but the "
            "winner from them; %s",
            *(
                store,
                entropy,
                "set teacher.temperature_scaling=true" if scaling else "votes to fit a temperature are lacking",
            ),
        )


def log_loss_of_votes(
    scores: pl.DataFrame, rows: Sequence[Conversation], labels: Labels = LABELS
) -> tuple[float, int, float] | None:
    """The log loss in nats of a store's rows (`LOGITS`) on votes, on how many, and that of guessing the labels' shares.

    Votes are for `labels`, on conversations outside the test split, which is looked at once, by eval, that their judge
    has not learned from. None where there are none.
    """
    outside = [c for c in rows if c.votes is not None and c.fold != TEST]
    votes = pl.DataFrame({"id": [c.id for c in outside], "votes": [c.votes for c in outside]}, schema=VOTES)
    found = swap_average(scores.filter(~pl.col("in_sample"))).join(votes, on="id")
    if found.is_empty():
        return None
    logits, counts = (among(found[name].to_numpy().astype(float), labels) for name in ("logits", "votes"))
    logits -= logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    shares = counts.sum(axis=0) / counts.sum()
    prior = -sum(share * np.log(share) for share in shares if share)
    total = np.where(counts > 0, counts * log_probabilities, 0).sum()  # a label that a judge cannot give has no vote
    return float(-total / counts.sum()), len(found), float(prior)


def votes_temperatures(logits: dict[str, Sequence[float]], rows: Sequence[Conversation], labels: Labels) -> str:
    """The temperatures by fold and the log loss with them, in words; "" where there are too few votes."""
    voted = [c for c in rows if c.id in logits and c.votes and c.fold != TEST]
    if len(voted) < ENOUGH or len({c.fold for c in voted}) < 2:
        return ""
    own = among(np.array([logits[c.id] for c in voted], dtype=float), labels)
    found = temperatures(own, voted)
    votes = among(np.array([c.votes for c in voted], dtype=float), labels)
    loss = -(votes * log_softmax(own / found[:, None], axis=1)).sum() / votes.sum()
    by_fold = ", ".join(f"{found[[c.fold for c in voted].index(fold)]:.3f}" for fold in sorted({c.fold for c in voted}))
    return f"{loss:.4f} with the temperatures {by_fold} (of each fold, fitted to the others' votes)"


def write_calibrated(
    artefact: Artefact, given: Path, rows: Sequence[Conversation], labels: Labels, which_rows: str
) -> None:
    """The store of the logits in `given`, scaled fold by fold; people voted for `labels`."""
    try:
        artefact.is_finished()
    except UserError as changed:  # what it was made of has more rows now, or others
        log.info("%s; it is made again", str(changed).split("\n")[0])
        clear(artefact.folder)
    of_one = Mixing([given.name], None, "logits", temperature_scaling=True)
    write_mixture(artefact, {given.name: given}, rows, labels, of_one, in_fold=which_rows == "in_fold")
