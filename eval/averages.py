"""What averaging folds costs: every fold, each average, and the ensemble of all folds on the same conversations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from eval.fidelity import Logits
from eval.metrics import Groups, bootstrap_means, interval, log_loss_rows, paired_difference, predict

ENSEMBLE = "ensemble"


def compare_averages(
    logits: Mapping[str, Logits], folds: Sequence[str], votes: np.ndarray, groups: Groups, *, draws: int, seed: int
) -> dict[str, Any]:
    """Log loss in nats of each judge of `logits` and of the ensemble of `folds`, the mean of their logits.

    Gives {"rows": n, "judges": {name: {"log_loss", "log_loss_ci", "over_ensemble": {"difference", "ci"}}}};
    `over_ensemble` is how much a judge is worse than the ensemble that it would replace, paired.
    """
    mean = tuple(np.mean([logits[fold][order] for fold in folds], axis=0) for order in (0, 1))
    losses = {name: log_loss_rows(predict(*pair), votes) for name, pair in {**logits, ENSEMBLE: mean}.items()}
    return {
        "rows": len(votes),
        "judges": {
            name: {
                "log_loss": float(loss.mean()),
                "log_loss_ci": interval(bootstrap_means(loss, groups, draws, seed)),
                "over_ensemble": paired_difference(loss, losses[ENSEMBLE], groups, draws, seed),
            }
            for name, loss in losses.items()
        },
    }


def averages_table(compared: Mapping[str, Any]) -> Table:
    """What `compare_averages` gave, for the terminal."""
    table = Table(caption=f"on {compared['rows']} conversations that no fold was trained on; intervals: 95%, paired")
    table.add_column("judge")
    for heading in ("log loss", "over the ensemble", "95% interval"):
        table.add_column(heading, justify="right")
    for name, of in compared["judges"].items():
        over = of["over_ensemble"]
        table.add_row(
            name, f"{of['log_loss']:.4f}", f"{over['difference']:+.4f}", "{:+.4f} to {:+.4f}".format(*over["ci"])
        )
    return table
