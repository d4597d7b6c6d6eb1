"""What distillation gains over several training seeds: is the difference larger than the luck of a run?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from eval.metrics import Groups, bootstrap_means, interval

JUDGES = ("student_no_teacher", "student")


def summarise_seeds(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    losses: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    groups: Groups,
    *,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Student and student without teacher over training seeds, and the gain between them, with 95% intervals.

    `metrics[judge]` holds what `metrics.summarise` gave for each seed, `losses[judge]` the log losses [seeds, rows] of
    the same held-out rows; both follow `seeds`. Gives {"seeds": [...], judge: {"log_loss", "log_loss_ci",
    "log_loss_sd", "accuracy", "ece", "flip_rate", "log_loss_by_seed"}, "gain": {"difference", "ci"}}; the gain is
    above zero where the teacher helped.

    Every draw resamples groups of conversations and, independently, training seeds, since every seed is tested on
    every conversation (Owen 2007, "The pigeonhole bootstrap"). Both judges see the same draws, and runs of one seed
    stay together. A plain bootstrap of S seeds has only (S - 1) / S of their variance, far too little for three;
    drawn weights are therefore stretched about their mean by sqrt(S / (S - 1)) (Rao and Wu 1988).
    Where the luck of runs outweighs that of rows, two or three seeds still give too narrow an interval; take five.
    Raises `ValueError` for fewer than two seeds.
    """
    count = len(seeds)
    if count < 2:
        raise ValueError(
            f"eval.seeds={list(seeds)}: an interval over seeds needs two or more; train another with seed=N"
        )
    for judge in JUDGES:
        assert losses[judge].shape == (count, len(groups)), f"{judge}: losses of shape {losses[judge].shape}"
        assert np.allclose(losses[judge].mean(axis=1), [m["log_loss"] for m in metrics[judge]]), f"{judge}: other rows"
    drawn = np.random.default_rng([seed, count]).multinomial(count, [1 / count] * count, size=draws) / count
    weights = 1 / count + (drawn - 1 / count) * np.sqrt(count / (count - 1))
    by_seed = bootstrap_means(np.concatenate([losses[judge] for judge in JUDGES]).T, groups, draws, seed)
    means = {
        judge: (half * weights).sum(axis=1) for judge, half in zip(JUDGES, np.split(by_seed, 2, axis=1), strict=True)
    }
    without, student = JUDGES
    return {
        "seeds": list(seeds),
        **{judge: _over_seeds(metrics[judge], means[judge]) for judge in JUDGES},
        "gain": {
            "difference": float(losses[without].mean() - losses[student].mean()),
            "ci": interval(means[without] - means[student]),
        },
    }


def seeds_table(summary: Mapping[str, Any]) -> Table:
    """What `summarise_seeds` gave, for the terminal."""
    gain, (low, high) = summary["gain"]["difference"], summary["gain"]["ci"]
    table = Table(
        title=f"{len(summary['seeds'])} training seeds: {', '.join(map(str, summary['seeds']))}",
        caption=f"gain from the teacher {gain:+.4f} nats (95% interval {low:+.4f} to {high:+.4f}, over rows and seeds)",
    )
    table.add_column("judge")
    for heading in ("log loss", "95% interval", "sd over seeds", "accuracy", "ECE", "flips"):
        table.add_column(heading, justify="right")
    for judge in JUDGES:
        of = summary[judge]
        table.add_row(
            judge,
            f"{of['log_loss']:.4f}",
            "{:.4f} to {:.4f}".format(*of["log_loss_ci"]),
            f"{of['log_loss_sd']:.4f}",
            *(f"{of[name]:.1%}" for name in ("accuracy", "ece", "flip_rate")),
        )
    return table


def _over_seeds(runs: Sequence[Mapping[str, Any]], means: np.ndarray) -> dict[str, Any]:
    losses = [run["log_loss"] for run in runs]
    return {
        "log_loss": float(np.mean(losses)),
        "log_loss_ci": interval(means),
        "log_loss_sd": float(np.std(losses, ddof=1)),
        **{name: float(np.mean([run[name] for run in runs])) for name in ("accuracy", "ece", "flip_rate")},
        "log_loss_by_seed": losses,
    }
