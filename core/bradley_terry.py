"""Two rewards, or two strengths, as logits of a, b and tie."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BradleyTerry:
    """P(a), P(b) and P(tie) in proportion to exp(s/2), exp(-s/2) and exp(log_tie), s = `weights` · (r_a - r_b).

    Bradley and Terry's (1952) model of paired comparisons with ties as Davidson (1970), "On Extending the Bradley-Terry
    Model to Accommodate Ties", added them. `weights` [objectives] are per unit of each reward.
    """

    weights: np.ndarray
    log_tie: float

    def logits(self, differences: np.ndarray) -> np.ndarray:
        """float64 [n, 3] for differences r_a - r_b [n, objectives]; negated, they give a and b exchanged."""
        strength = differences @ self.weights
        return np.column_stack([strength / 2, -strength / 2, np.full(len(differences), self.log_tie)])
