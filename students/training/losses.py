"""Losses on logits of a, b and tie, as pure functions that return sums over rows, and their weighted combination.

A sum over a batch is the sum of the sums over its parts, so micro-batches and ranks add up exactly; the training loop
divides once, by the number of rows that the whole optimiser step holds.

Weights [rows] are 0 for rows that have no such target. Sums are in nats, unless a loss's own line says otherwise. Where
a temperature T softens both sides, T^2 keeps the gradient's size independent of it (Hinton et al. 2015, arXiv
1503.02531, section 2).

A new comparison with the teacher is one function here with a line in `DIVERGENCES`, a field of `LossConfig` and a key
in `conf/loss/distill.yaml`.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from core.errors import UserError
from core.labels import Labels, among
from core.records import LABELS, swap_labels
from students.training.config import LossConfig, VotesTermConfig

if TYPE_CHECKING:
    from students.training.data import Batch

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # log-probabilities of judge, teacher -> [rows]
SWAPPED = list(swap_labels(range(len(LABELS))))


def cross_entropy_sum(logits: torch.Tensor, votes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against `votes` [rows, labels], each row a distribution."""
    return -(weights * (votes * logits.log_softmax(-1)).sum(-1)).sum()


def divergence_sum(
    divergence: Divergence, logits: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 * divergence of softmax(logits / T) from softmax(teacher / T), one of the functions below."""
    judge, target = (logits / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    return temperature**2 * (weights * divergence(judge, target)).sum()


def kl(judge: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || judge): covers all that the teacher holds possible."""
    return (teacher.exp() * (teacher - judge)).sum(-1)


def cosine(judge: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine of the angle between the probabilities, no nats (LMSYS 1st place)."""
    return 1 - functional.cosine_similarity(judge.exp(), teacher.exp(), dim=-1)


DIVERGENCES: Mapping[str, Divergence] = {"kl": kl, "cosine": cosine}


class Objective:
    """The configured sum of losses: `names` are the terms whose weight is not zero, in the order of all results.

    Only the outputs of `labels` count: where nobody can vote for a tie, its logit has no gradient.
    """

    def __init__(self, config: LossConfig, labels: Labels = LABELS):
        """Raises `UserError` where no term has a weight."""
        self.terms, self.labels = config.terms, labels
        if not self.terms:
            raise UserError("loss: all weights are zero; give a term one, as in loss.cross_entropy.weight=1")
        self.names = tuple(self.terms)

    @property
    def weights(self) -> torch.Tensor:
        """[terms]."""
        return torch.tensor([term.weight for term in self.terms.values()], dtype=torch.float64)

    def sums(self, logits: torch.Tensor, batch: "Batch") -> torch.Tensor:
        """[terms] sums over the batch's rows, without the terms' weights; `logits` [rows, 3]."""
        votes, teacher, judge = (among(of, self.labels) for of in (batch.votes, batch.teacher, logits))
        sums = []
        for name, term in self.terms.items():
            if isinstance(term, VotesTermConfig):
                sums.append(cross_entropy_sum(judge, votes, batch.vote_weights))
            else:
                weights = batch.teacher_weights
                sums.append(divergence_sum(DIVERGENCES[name], judge, teacher, weights, term.temperature))
        return torch.stack(sums)

    def normalisers(self, voted: float, taught: float) -> torch.Tensor:
        """[terms] what each term's sum is divided by: the global weight of the rows that have such a target."""
        counts = [voted if isinstance(term, VotesTermConfig) else taught for term in self.terms.values()]
        return torch.tensor([max(count, 1e-12) for count in counts], dtype=torch.float64)
