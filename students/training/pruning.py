"""Where a sweep searches, trainings that compare badly with earlier ones stop early."""

from pathlib import Path

from core.json_files import write_json
from distill.config import Config
from students.training.checkpoints import Progress
from students.training.collectives import from_first, rank
from students.training.ranks import together
from students.training.studies import Pruned, mark_pruned, told_to_stop


def stop_if_pruned(config: Config, folder: Path, progress: Progress) -> None:
    """Report the validations to the sweep's study; raise `Pruned` on every rank where its pruner says so.

    It is told the votes' log loss: trials with other weights of the loss have other objectives. Nothing happens outside
    of a sweep. All ranks call it, after a checkpoint. A pruned run has `metrics.json`, which says so, and no manifest:
    no later stage takes it for finished, and its checkpoint goes on outside of the sweep.
    """
    if config.sweep.trial is None:
        return
    validations = [log_loss for record in progress.history if (log_loss := record["validation_log_loss"]) is not None]
    first, told = rank() == 0, False
    with together():
        told = first and told_to_stop(config, validations)
    if not from_first(int(told)):
        return
    with together():
        if first:
            summary = {"validation_log_loss": progress.kept["validation_log_loss"], "best_step": progress.kept["step"]}
            write_json(folder / "metrics.json", {"pruned": True, **summary, "steps": progress.step})
            mark_pruned(config, progress.step)
    raise Pruned(progress.kept["validation_log_loss"])
