"""The student against its variants over several training seeds: is a difference larger than the luck of a run?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from distill.errors import UserError
from eval.metrics import Groups, bootstrap_means, interval

STUDENT = "student"


def summarise_seeds(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    losses: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    groups: Groups,
    *,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """The student and its variants over training seeds, and what it gains over each of them, with 95% intervals.

    `metrics[judge]` holds what `metrics.summarise` gave for each seed, `losses[judge]` the log losses [seeds, rows] of
    the same held-out rows; both follow `seeds`, and one judge is `STUDENT`. Gives {"seeds": [...], "judges": {judge:
    {"log_loss", "log_loss_ci", "log_loss_sd", "accuracy", "ece", "flip_rate", "log_loss_by_seed"}}, "gains": {variant:
    {"difference", "ci"}}}; a gain is above zero where the student is better than the variant.

    Every draw resamples groups of conversations and, independently, training seeds, since every seed is tested on
    every conversation (Owen 2007, "The pigeonhole bootstrap"). All judges see the same draws, and runs of one seed
    stay together. A plain bootstrap of S seeds has only (S - 1) / S of their variance, far too little for three;
    drawn weights are therefore stretched about their mean by sqrt(S / (S - 1)) (Rao and Wu 1988).
    Where the luck of runs outweighs that of rows, two or three seeds still give too narrow an interval; take five.
    Raises `UserError` for fewer than two seeds.
    """
    count = len(seeds)
    if count < 2:
        raise UserError(
            f"eval.seeds={list(seeds)}: an interval over seeds needs two or more; train another with seed=N"
        )
    for judge in losses:
        assert losses[judge].shape == (count, len(groups)), f"{judge}: losses of shape {losses[judge].shape}"
        assert np.allclose(losses[judge].mean(axis=1), [m["log_loss"] for m in metrics[judge]]), f"{judge}: other rows"
    drawn = np.random.default_rng([seed, count]).multinomial(count, [1 / count] * count, size=draws) / count
    weights = 1 / count + (drawn - 1 / count) * np.sqrt(count / (count - 1))
    by_seed = bootstrap_means(np.concatenate([*losses.values()]).T, groups, draws, seed)
    parts = np.split(by_seed, len(losses), axis=1)
    means = {judge: (part * weights).sum(axis=1) for judge, part in zip(losses, parts, strict=True)}
    return {
        "seeds": list(seeds),
        "judges": {judge: _over_seeds(metrics[judge], means[judge]) for judge in losses},
        "gains": {
            judge: {
                "difference": float(losses[judge].mean() - losses[STUDENT].mean()),
                "ci": interval(means[judge] - means[STUDENT]),
            }
            for judge in losses
            if judge != STUDENT
        },
    }


def seeds_table(summary: Mapping[str, Any]) -> Table:
    """What `summarise_seeds` gave, for the terminal."""
    table = Table(
        title=f"{len(summary['seeds'])} training seeds: {', '.join(map(str, summary['seeds']))}",
        caption="intervals: 95%, over rows and seeds; gain: by how many nats the student is better, paired",
    )
    table.add_column("judge", overflow="fold")
    for heading in ("log loss", "95% interval", "student's gain", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for judge, of in summary["judges"].items():
        gain = summary["gains"].get(judge)
        table.add_row(
            judge,
            f"{of['log_loss']:.4f}",
            "{:.4f} to {:.4f}".format(*of["log_loss_ci"]),
            *([] if gain is None else [f"{gain['difference']:+.4f}", "{:+.4f} to {:+.4f}".format(*gain["ci"])]),
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
