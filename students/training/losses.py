"""Losses on three-way logits, as pure functions that return sums over rows, and their weighted combination.

A sum over a batch is the sum of the sums over its parts, so micro-batches and ranks add up exactly; the training loop
divides once, by the number of rows that the whole optimiser step holds.

Every function takes logits [rows, 3] and weights [rows] (0 for a row that has no such target) and gives nats, or what
its line says. Where a temperature T softens both sides, T^2 keeps the gradient's size independent of it (Hinton et al.
2015, arXiv 1503.02531, section 2).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from core.errors import UserError
from core.records import LABELS, swap_labels
from students.training.config import LossConfig

if TYPE_CHECKING:
    from students.training.data import Batch

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # log-probabilities of student, teacher -> [rows]
SKEW = 0.1  # DistiLLM's alpha
SWAPPED = list(swap_labels(range(len(LABELS))))


def cross_entropy_sum(logits: torch.Tensor, votes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against `votes` [rows, 3], each row a distribution."""
    return -(weights * (votes * logits.log_softmax(-1)).sum(-1)).sum()


def divergence_sum(
    divergence: Divergence, logits: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 * divergence of softmax(logits / T) from softmax(teacher / T), one of the functions below."""
    student, target = (logits / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    return temperature**2 * (weights * divergence(student, target)).sum()


def kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student): covers all that the teacher holds possible."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher): seeks the teacher's mode (Gu et al. 2024, MiniLLM, arXiv 2306.08543)."""
    return kl(teacher, student)


def jensen_shannon(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The mean KL of both to their mean; at most ln 2 (Lin 1991)."""
    mean = _mixed(student, teacher, 0.5)
    return (kl(mean, student) + kl(mean, teacher)) / 2


def skew_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || a teacher + (1 - a) student), a = `SKEW`: bounded (Ko et al. 2024, DistiLLM, arXiv 2402.03898)."""
    return kl(_mixed(teacher, student, SKEW), teacher)


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine of the angle between the probabilities, no nats (LMSYS 1st place)."""
    return 1 - functional.cosine_similarity(student.exp(), teacher.exp(), dim=-1)


def squared_error_sum(logits: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over labels of the squared difference of centred logits, which a constant added to a row does not change."""
    difference = logits - teacher
    return (weights * (difference - difference.mean(-1, keepdim=True)).square().mean(-1)).sum()


def swap_consistency_sum(logits: torch.Tensor, rows_ab: torch.Tensor, rows_ba: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence between the verdicts on a conversation shown in both orders.

    `rows_ab` and `rows_ba` [pairs] say in which rows a conversation was shown as ab and as ba.
    """
    return jensen_shannon(logits[rows_ab].log_softmax(-1), logits[rows_ba][:, SWAPPED].log_softmax(-1)).sum()


DIVERGENCES: Mapping[str, Divergence] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skew_kl": skew_kl,
    "cosine": cosine,
}


class Objective:
    """The configured sum of losses: `names` are the terms whose weight is not zero, in the order of all results."""

    def __init__(self, config: LossConfig):
        """Raises `UserError` where no term has a weight."""
        self.terms = config.terms
        if not self.terms:
            raise UserError("loss: all weights are zero; give a term one, as in loss.cross_entropy.weight=1")
        self.names = tuple(self.terms)

    def sums(self, logits: torch.Tensor, batch: "Batch", done: float) -> torch.Tensor:
        """[terms] sums over the batch's rows, without the terms' weights; `done` is the share of steps done."""
        return torch.stack([self._sum(name, logits, batch, done) for name in self.names])

    def _sum(self, name: str, logits: torch.Tensor, batch: "Batch", done: float) -> torch.Tensor:
        if name == "cross_entropy":
            return cross_entropy_sum(logits, batch.votes, batch.vote_weights)
        if name == "swap_consistency":
            return swap_consistency_sum(logits, batch.rows_ab, batch.rows_ba)
        if name == "squared_error":
            return squared_error_sum(logits, batch.teacher, batch.teacher_weights)
        term = self.terms[name]
        temperature = moved(term.temperature, term.final_temperature, done)
        return divergence_sum(DIVERGENCES[name], logits, batch.teacher, batch.teacher_weights, temperature)

    def normalisers(self, voted: float, taught: float, pairs: float) -> torch.Tensor:
        """[terms] what each term's sum is divided by: the global weight of the rows that have such a target."""
        counts = {"cross_entropy": voted, "swap_consistency": pairs}
        return torch.tensor([max(counts.get(name, taught), 1e-12) for name in self.names], dtype=torch.float64)

    def weights(self, done: float) -> torch.Tensor:
        """[terms] weights when the share `done` of all steps is done."""
        terms = self.terms.values()
        return torch.tensor([moved(t.weight, t.final_weight, done) for t in terms], dtype=torch.float64)


def moved(first: float, final: float | None, done: float) -> float:
    """A value on its straight way from `first` to `final` (None: it stays)."""
    return first if final is None else first + (final - first) * done


def _mixed(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """log(share * exp(first) + (1 - share) * exp(second))."""
    logs = torch.tensor([share, 1 - share], dtype=first.dtype, device=first.device).log()
    return torch.logaddexp(first + logs[0], second + logs[1])
