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
from core.records import TEST, Conversation
from core.scoring import swap_average
from core.store.parts import clear
from core.store.reading import read_logits
from teachers.mixtures import Mixing, temperatures, write_mixture

log = logging.getLogger(__name__)
SATURATED = 0.1  # nats of median entropy: of two labels, the likelier has 98%
ENOUGH = 20  # voted conversations, for a temperature to mean something


def tell_calibration(store: Path, rows: Sequence[Conversation], labels: Labels, scaled: bool | None) -> None:
    """Log what temperatures do to the log loss on votes, and warn of a teacher that is surer than they allow.

    Only votes outside the test split count, on conversations that their judge has not learned from. `scaled`: the
    logits are going to be divided by these temperatures.
    """
    averaged = swap_average(read_logits(store, "score with the teacher first").filter(~pl.col("in_sample")))
    logits = dict(averaged.select("id", "logits").iter_rows())
    if not logits:
        return
    every = log_softmax(among(np.array(list(logits.values()), dtype=float), labels), axis=1)
    entropy = float(np.median(-(np.exp(every) * every).sum(axis=1)))
    told = votes_temperatures(logits, rows, labels)
    if told:
        log.info("%s: %s", store, told)
    if entropy < SATURATED and not scaled:
        log.warning(
            "%s: these probabilities are saturated, with a median entropy of %.3g nats: students learn little but the "
            "winner from them; %s",
            *(
                store,
                entropy,
                "set teacher.temperature_scaling=true" if told else "votes to fit a temperature are lacking",
            ),
        )


def votes_temperatures(logits: dict[str, Sequence[float]], rows: Sequence[Conversation], labels: Labels) -> str:
    """The temperatures by fold and the log losses before and after, in words; "" where there are too few votes."""
    voted = [c for c in rows if c.id in logits and c.votes and c.fold != TEST]
    if len(voted) < ENOUGH or len({c.fold for c in voted}) < 2:
        return ""
    own = among(np.array([logits[c.id] for c in voted], dtype=float), labels)
    found = temperatures(own, voted)
    votes = among(np.array([c.votes for c in voted], dtype=float), labels)

    def loss(scaled: np.ndarray) -> float:
        return float(-(votes * log_softmax(scaled, axis=1)).sum() / votes.sum())

    by_fold = ", ".join(f"{found[[c.fold for c in voted].index(fold)]:.3f}" for fold in sorted({c.fold for c in voted}))
    return (
        f"log loss {loss(own):.4f} on the votes of {len(voted)} conversations, {loss(own / found[:, None]):.4f} with "
        f"the temperatures {by_fold} (of each fold, fitted to the others' votes)"
    )


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
