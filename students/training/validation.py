"""What a validation says: the votes' log loss, and the training's own objective with its standard error.

Votes are noisy: with one vote a row, a few hundred rows cannot tell one checkpoint from the next. The objective has the
teacher's soft targets as well, where the training has them, and the differences of two checkpoints are paired.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.labels import among
from core.records import LABELS, ORDERS
from students.training.data import Example, collate
from students.training.losses import SWAPPED, Objective, cross_entropy_sum
from students.training.steps import BatchRow


@dataclass(frozen=True)
class Validation:
    """`log_loss` (nats) of the swap-averaged logits against votes, and the `objective` by prompt group.

    The objective is the mean of its values [groups], which `objective_by_group` makes.
    """

    log_loss: float
    objective: np.ndarray

    def record(self) -> dict[str, float]:
        """Its columns of the history."""
        return {
            "validation_log_loss": self.log_loss,
            "validation_objective": float(self.objective.mean()),
            "validation_standard_error": standard_error(self.objective),
        }


@torch.no_grad()
def score(
    judge: Any,
    examples: Sequence[Example],
    batches: Iterable[list[BatchRow]],
    device: torch.device,
    padding_free: bool,
    *,
    in_two: bool = False,
) -> torch.Tensor:
    """Logits [examples, orders, 3], as shown, of the rows in `batches`; zero for all others."""
    logits = torch.zeros(len(examples), len(ORDERS), len(LABELS))
    for rows in batches:
        batch = collate(rows, examples, device, padding_free, in_two=in_two)
        shown = judge(batch.input_ids, batch.positions, batch.ends).float().cpu()
        for (i, order), row in zip(rows, shown, strict=False):  # a dummy row has no name
            logits[i, order] = row
    return logits


def swap_averaged(logits: torch.Tensor) -> torch.Tensor:
    """[examples, orders, 3] as shown -> [examples, 3] in the conversation's own a and b, the mean over both orders."""
    return (logits[:, 0] + logits[:, 1][:, SWAPPED]) / 2


def validation(objective: Objective, logits: torch.Tensor, examples: Sequence[Example]) -> Validation:
    """What `logits` [examples, orders, 3], as shown, are worth."""
    voted = [(row, e.votes) for row, e in zip(swap_averaged(logits), examples, strict=True) if e.votes]
    averaged, votes = torch.stack([row for row, _ in voted]), torch.tensor([v for _, v in voted])
    judged, chosen = (among(of, objective.labels) for of in (averaged, votes))
    log_loss = cross_entropy_sum(judged, chosen, torch.ones(len(averaged))).item() / len(averaged)
    return Validation(log_loss, objective_by_group(objective, logits, examples))


def objective_by_group(objective: Objective, logits: torch.Tensor, examples: Sequence[Example]) -> np.ndarray:
    """Values [groups] whose mean is the objective, and whose scatter tells its standard error: float64.

    Each term is a ratio, its sum over the weight of the rows that have such a target. A value is the objective plus the
    group's influence on it, so the standard error is right to first order for any weights and group sizes
    (the linearised variance of a ratio; Cochran 1977, Sampling Techniques, section 6). Rows of one prompt are not
    independent, hence groups. Values of two judges on the same rows may be subtracted: their difference is paired.
    """
    device, both = torch.device("cpu"), len(ORDERS)
    sums, counts = [], []
    for i, example in enumerate(examples):
        batch = collate([(i, order) for order in range(len(ORDERS))], examples, device)
        sums.append(objective.sums(logits[i].double(), batch))
        counts.append(objective.normalisers(both * example.vote_weight, both * example.teacher_weight))
    values, weights = torch.stack(sums), torch.stack(counts)
    totals = weights.sum(0)
    means, factors = values.sum(0) / totals, objective.weights
    influences = ((values - means * weights) / totals) @ factors
    groups, place = np.unique([example.group for example in examples], return_inverse=True)
    by_group = np.bincount(place, weights=influences.numpy(), minlength=len(groups))
    return np.asarray(float(factors @ means) + len(groups) * by_group)


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent `values` [groups]; infinite for a single one, whose noise is unknown."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def better(earlier: np.ndarray, later: np.ndarray) -> bool:
    """Whether the objective of `earlier` is lower than that of `later` beyond the standard error of the difference."""
    return bool((later - earlier).mean() > standard_error(later - earlier))
