"""What a judge whose verdicts do not depend on the order can reach in the simulated arena, whose voters' do.

    python -m studies.order_blind [--conversations 20000]

Expected log loss (nats) of the true distribution, of the same without the effect of the position, and of the best
pointwise judge (`core.pointwise.Choice`): its scale and its constant of ties are fitted to the true distribution.
"""

import argparse

import numpy as np
from scipy.optimize import minimize

from core.data.arena_sim import NOISE, POSITION, bayes_log_loss, simulate, vote_probabilities
from core.data.config import SimulateConfig
from core.pointwise import Choice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=20000)
    table = simulate(SimulateConfig(parser.parse_args().conversations, seed=1))[1]
    truth = table["probabilities"].to_numpy()
    strength = np.log((truth[:, 0] - NOISE / 3) / (truth[:, 1] - NOISE / 3)) - POSITION

    def log_loss(probabilities: np.ndarray) -> float:
        return float(-(truth * np.log(probabilities)).sum(axis=1).mean())

    def pointwise(parameters: np.ndarray) -> float:
        logits = Choice(*map(float, parameters)).logits(strength / 2, -strength / 2)
        weights = np.exp(logits)
        return log_loss(weights / weights.sum(axis=1, keepdims=True))

    blind = np.array([vote_probabilities(difference - POSITION, 0.0) for difference in strength])
    best = minimize(pointwise, [1.0, 0.0], method="Nelder-Mead").fun
    print(f"true {bayes_log_loss(table):.4f}, blind to the order {log_loss(blind):.4f}, pointwise {best:.4f}")


if __name__ == "__main__":
    main()
