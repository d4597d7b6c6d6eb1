"""What averaging folds costs: every fold, each average, and the ensemble of all folds on the same conversations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from eval.bootstrap import Resampling
from eval.fidelity import Logits
from eval.intervals import Groups, Interval
from eval.means import METHODS, Difference, Means
from eval.metrics import log_loss_rows, predict

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Averaged:
    """A judge's log loss in nats, and how much worse it is than the ensemble that it would replace, paired."""

    log_loss: float
    log_loss_ci: Interval
    over_ensemble: Difference


@dataclass(frozen=True)
class Averages:
    """Judges on the same `rows` conversations; `intervals`: how they are made (`means.Means`)."""

    rows: int
    intervals: str
    judges: Mapping[str, Averaged]


def compare_averages(
    logits: Mapping[str, Logits], folds: Sequence[str], votes: np.ndarray, groups: Groups, resampling: Resampling
) -> Averages:
    """Compare each judge of `logits` with the ensemble of `folds`, the mean of their logits."""
    mean = tuple(np.mean([logits[fold][order] for fold in folds], axis=0) for order in (0, 1))
    losses = {name: log_loss_rows(predict(*pair), votes) for name, pair in {**logits, ENSEMBLE: mean}.items()}
    means = Means(losses, groups, resampling)
    judges = {
        name: Averaged(
            **means.figures({"log_loss": name}), over_ensemble=Difference.of(means.difference(name, ENSEMBLE))
        )
        for name in losses
    }
    return Averages(len(votes), means.method, judges)


def averages_table(compared: Averages) -> Table:
    """What `compare_averages` gave, for the terminal."""
    table = Table(
        caption=f"on {compared.rows} conversations that no fold was trained on; "
        f"intervals: 95%, paired, {METHODS[compared.intervals]}"
    )
    table.add_column("judge")
    for heading in ("log loss", "over the ensemble", "95% interval"):
        table.add_column(heading, justify="right")
    for name, of in compared.judges.items():
        over = of.over_ensemble
        table.add_row(name, f"{of.log_loss:.4f}", f"{over.difference:+.4f}", "{:+.4f} to {:+.4f}".format(*over.ci))
    return table
