"""What averaging folds costs: every fold, each average, and the ensemble of all folds on the same conversations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from eval.fidelity import Logits
from eval.inference import Groups
from eval.metrics import METHODS, Means, difference, log_loss_rows, predict

ENSEMBLE = "ensemble"


def compare_averages(
    logits: Mapping[str, Logits], folds: Sequence[str], votes: np.ndarray, groups: Groups, *, draws: int, seed: int
) -> dict[str, Any]:
    """Log loss in nats of each judge of `logits` and of the ensemble of `folds`, the mean of their logits.

    Gives {"rows": n, "intervals": `metrics.Means.method`, "judges": {name: {"log_loss", "log_loss_ci",
    "over_ensemble": {"difference", "ci"}}}}; `over_ensemble` is how much a judge is worse than the ensemble that it
    would replace, paired.
    """
    mean = tuple(np.mean([logits[fold][order] for fold in folds], axis=0) for order in (0, 1))
    losses = {name: log_loss_rows(predict(*pair), votes) for name, pair in {**logits, ENSEMBLE: mean}.items()}
    means = Means(losses, groups, draws, seed)
    return {
        "rows": len(votes),
        "intervals": means.method,
        "judges": {
            name: {
                **means.figures({"log_loss": name}),
                "over_ensemble": difference(means.difference(name, ENSEMBLE)),
            }
            for name in losses
        },
    }


def averages_table(compared: Mapping[str, Any]) -> Table:
    """What `compare_averages` gave, for the terminal."""
    rows, method = compared["rows"], METHODS[compared["intervals"]]
    table = Table(caption=f"on {rows} conversations that no fold was trained on; intervals: 95%, paired, {method}")
    table.add_column("judge")
    for heading in ("log loss", "over the ensemble", "95% interval"):
        table.add_column(heading, justify="right")
    for name, of in compared["judges"].items():
        over = of["over_ensemble"]
        table.add_row(
            name, f"{of['log_loss']:.4f}", f"{over['difference']:+.4f}", "{:+.4f} to {:+.4f}".format(*over["ci"])
        )
    return table
