"""The student against its variants over several training seeds: is a difference larger than the luck of a run?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from core.errors import UserError
from eval.inference import Estimate, Groups, Jackknife
from eval.metrics import LEVEL, number_groups

STUDENT = "student"


def summarise_seeds(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    losses: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    groups: Groups,
    taught: Mapping[str, int],
) -> dict[str, Any]:
    """The student and its variants over training seeds, and what it gains over each of them, with 95% intervals.

    `metrics[judge]` holds what `metrics.summarise` gave for each seed, `losses[judge]` the log losses [seeds, rows] of
    the same scored rows; both follow `seeds`, and one judge is `STUDENT`. `taught[judge]`: of how many of the rows its
    teachers saw the votes. Gives {"seeds": [...], "rows", "judges": {judge: {"log_loss", "log_loss_ci", "log_loss_sd",
    "accuracy", "ece", "flip_rate", "log_loss_by_seed", "taught"}}, "gains": {variant: {"difference", "ci"}}}; a gain is
    above zero where the student is better than the variant.

    Every seed is tested on every conversation, so prompts and seeds are two ways in which the mean may vary, and their
    variances add up (Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering"; what both share is
    left in, which widens the interval a little). Student's t has the degrees of freedom of the sum (Satterthwaite
    1946): near those of the prompts where runs agree, near those of the seeds where luck rules. Runs of one seed stay
    together.
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
    jackknife = Jackknife(number_groups(groups))
    return {
        "seeds": list(seeds),
        "rows": len(groups),
        "judges": {
            judge: _over_seeds(metrics[judge], _mean(losses[judge], jackknife)) | {"taught": taught[judge]}
            for judge in losses
        },
        "gains": {
            judge: {"difference": gain.value, "ci": list(gain.interval(LEVEL))}
            for judge in losses
            if judge != STUDENT
            for gain in [_mean(losses[judge] - losses[STUDENT], jackknife)]
        },
    }


def _mean(losses: np.ndarray, jackknife: Jackknife) -> Estimate:
    """The mean of [seeds, rows] with the error of prompts and seeds together."""
    over_prompts, by_seed = jackknife.whole(losses.mean(axis=0)), losses.mean(axis=1)
    error, freedom = np.array([over_prompts.error, stats.sem(by_seed)]), [over_prompts.freedom, len(by_seed) - 1]
    variance = (error**2).sum()
    shared = variance**2 / (error**4 / freedom).sum() if variance else over_prompts.freedom
    return Estimate(over_prompts.value, float(np.sqrt(variance)), float(shared) + 1, losses.shape[1])


def seeds_table(summary: Mapping[str, Any]) -> Table:
    """What `summarise_seeds` gave, for the terminal."""
    table = Table(
        title=f"{len(summary['seeds'])} training seeds: {', '.join(map(str, summary['seeds']))}",
        caption="intervals: 95%, over rows and seeds; gain: by how many nats the student is better, paired",
    )
    rows = summary["rows"]
    table.add_column("judge", overflow="fold")
    for heading in ("log loss", "95% interval", "student's gain", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for judge, of in summary["judges"].items():
        gain = summary["gains"].get(judge)
        table.add_row(
            judge + (f"\ncross-validated, its teachers saw {of['taught']} of {rows} votes" if of["taught"] else ""),
            f"{of['log_loss']:.4f}",
            "{:.4f} to {:.4f}".format(*of["log_loss_ci"]),
            *([] if gain is None else [f"{gain['difference']:+.4f}", "{:+.4f} to {:+.4f}".format(*gain["ci"])]),
        )
    return table


def _over_seeds(runs: Sequence[Mapping[str, Any]], mean: Estimate) -> dict[str, Any]:
    losses = [run["log_loss"] for run in runs]
    return {
        "log_loss": float(np.mean(losses)),
        "log_loss_ci": list(mean.interval(LEVEL)),
        "log_loss_sd": float(np.std(losses, ddof=1)),
        **{name: float(np.mean([run[name] for run in runs])) for name in ("accuracy", "ece", "flip_rate")},
        "log_loss_by_seed": losses,
    }
