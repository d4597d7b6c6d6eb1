"""What a judge whose verdicts do not depend on the order can reach in the simulated arena, whose voters' do.

    python -m studies.order_blind [--conversations 20000]

Expected log loss (nats) of the true distribution, of the same without the effect of the position, and of the best
judge of Davidson's form, as pointwise judges are: its scale and tie constant are fitted to the true distribution.
"""

import argparse

import numpy as np
from scipy.optimize import minimize

from core.bradley_terry import BradleyTerry
from core.data.arena_sim import NOISE, POSITION, bayes_log_loss, simulate, vote_probabilities
from core.data.config import SimulateConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=20000)
    table = simulate(SimulateConfig(parser.parse_args().conversations, seed=1))[1]
    truth = table["probabilities"].to_numpy()
    strength = np.log((truth[:, 0] - NOISE / 3) / (truth[:, 1] - NOISE / 3)) - POSITION

    def log_loss(probabilities: np.ndarray) -> float:
        return float(-(truth * np.log(probabilities)).sum(axis=1).mean())

    def davidson(parameters: np.ndarray) -> float:
        logits = BradleyTerry(parameters[:1], float(parameters[1])).logits(strength[:, None])
        weights = np.exp(logits)
        return log_loss(weights / weights.sum(axis=1, keepdims=True))

    blind = np.array([vote_probabilities(difference - POSITION, 0.0) for difference in strength])
    best = minimize(davidson, [1.0, 0.0], method="Nelder-Mead").fun
    print(f"true {bayes_log_loss(table):.4f}, blind to the order {log_loss(blind):.4f}, as Davidson's {best:.4f}")


if __name__ == "__main__":
    main()
