"""Where a sweep searches, trainings that compare badly with earlier ones stop early."""

from pathlib import Path

from students.training.checkpoints import RunState
from students.training.collectives import from_first, rank
from students.training.optuna_studies import Pruned, Trial, mark_pruned, told_to_stop
from students.training.outcome import write_pruned_metrics
from students.training.ranks import fail_together


def stop_if_pruned(trial: Trial | None, folder: Path, state: RunState) -> None:
    """Report the validations to the sweep's study; raise `Pruned` on every rank where its pruner says so.

    The study compares the votes' log loss: trials with other weights of the loss have other objectives. Without a
    `trial` nothing happens. All ranks call it, after a checkpoint. A pruned run has a `metrics.json` that says so, and
    no manifest: no later stage takes it for finished, and the same command without the sweep resumes it.
    """
    if trial is None:
        return
    validations = [log_loss for record in state.history if (log_loss := record["validation_log_loss"]) is not None]
    first, stops = rank() == 0, False
    with fail_together():
        stops = first and told_to_stop(trial, validations)
    if not from_first(int(stops)):
        return
    with fail_together():
        if first:
            write_pruned_metrics(folder, state)
            mark_pruned(trial, state.step)
    raise Pruned(state.kept["validation_log_loss"])
