"""How well a tenth of the pairs of responses ranks them, compared with all pairs, for judges that err differently.

    python -m bench.ranking

60 responses have simulated strengths. A judge's opinion of a pair is off by an error of its own, as a model's is: the
same whenever it is asked. Kendall's tau is with the true order.
"""

import json
from collections.abc import Callable

import numpy as np
from scipy.special import expit
from scipy.stats import kendalltau

from deploy.ranking.pairing import comparisons
from deploy.ranking.strengths import Opinions, fit
from deploy.ranking.tournament import Tournament

RESPONSES, DRAWS, SPREAD = 60, 40, 1.5
ERRORS = (0.1, 0.25, 0.5)


def main() -> None:
    figures = {}
    for error in ERRORS:
        taus = np.array([taus_of(seed, error) for seed in range(DRAWS)])
        every, few = taus.mean(axis=0)
        print(f"errors of {error}: all pairs {every:.3f}, {comparisons(RESPONSES)} pairs {few:.3f}")
        figures[f"tau_lost_{error}"] = round(float(every - few), 4)
    targets = {name: ["<=", 0.02] for name in figures}
    print(json.dumps({"bench": "ranking", "figures": figures, "targets": targets}))


def taus_of(seed: int, error: float) -> tuple[float, float]:
    """Kendall's tau with the truth, of all pairs and of those of a tournament."""
    truth = np.random.default_rng(1000 + seed).normal(0, SPREAD, RESPONSES)
    asks, pairs = judge(truth, error, seed), np.column_stack(np.triu_indices(RESPONSES, 1))
    whole = fit(RESPONSES, Opinions(pairs, asks(pairs)))
    tournament = Tournament(RESPONSES)
    while len(asked := tournament.pairs()):
        tournament.tell(asked, asks(asked))
    found = (whole.rewards, tournament.strengths().rewards)
    first, second = (float(kendalltau(rewards, truth).statistic) for rewards in found)
    return first, second


def judge(rewards: np.ndarray, error: float, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """How often the first of each pair is preferred: pairs [n, 2] -> [n], off by one error a pair."""
    errors = np.random.default_rng(seed).normal(0, error, (len(rewards), len(rewards)))
    errors = np.triu(errors, 1) - np.triu(errors, 1).T

    def shares(pairs: np.ndarray) -> np.ndarray:
        i, j = pairs.T
        return np.asarray(expit(rewards[i] - rewards[j] + errors[i, j]))

    return shares


if __name__ == "__main__":
    main()
