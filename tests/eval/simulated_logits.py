"""Random logits and votes."""

import numpy as np


def simulate(rows: int, seed: int, soft: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits in both orders and votes; a quarter of the logits is rounded, so that labels tie."""
    rng = np.random.default_rng(seed)
    ab, ba = rng.normal(0, 2, (2, rows, 3)).astype(np.float32)
    ab[::4], ba[::4] = ab[::4].round(), ba[::4].round()
    votes = rng.multinomial(5, [0.4, 0.3, 0.3], rows) if soft else np.eye(3)[rng.integers(3, size=rows)]
    return ab, ba, votes.astype(np.float64)
