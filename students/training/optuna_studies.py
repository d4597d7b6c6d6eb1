"""Optuna studies below `sweeps/`: what a sweep has tried, and whether a training that is under way should stop.

A study is a journal file, which many machines can append to over a network file system. The sweeper asks for trials and
records how they ended; a training reports its validations. Optuna is imported only where a sweep searches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.artefacts.identity import differing_fields
from core.errors import UserError
from core.renamed import with_new_names

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import JournalStorage
    from optuna.study import Study

STUDY = "judge"  # one a journal
PRUNED = "pruned"  # a trial's attribute: the step after which it was stopped


@dataclass(frozen=True)
class Trial:
    """A training as part of a search: the folder of its study, and its number there."""

    study: Path
    number: int


class Pruned(Exception):
    """Training was stopped because it compares badly with other trials; `log_loss` is that of the judge it kept."""

    def __init__(self, log_loss: float):
        super().__init__(log_loss)
        self.log_loss = log_loss


def open_journal(folder: Path) -> "JournalStorage":
    """The study's storage: `folder`/journal.log."""
    from optuna import logging
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    logging.set_verbosity(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder / "journal.log")))


def open_pruner(settings: Mapping[str, Any]) -> "BasePruner":
    """The pruner `kind` of `optuna.pruners`, the other settings its arguments. Raises `UserError` for another kind."""
    from optuna import pruners

    arguments = {key: value for key, value in settings.items() if key != "kind"}
    if settings["kind"] not in pruners.__all__:
        raise UserError(f"hydra.sweeper.pruner.kind={settings['kind']!r}: one of {', '.join(pruners.__all__)}")
    return getattr(pruners, settings["kind"])(**arguments)


def open_study(folder: Path, pruner: Mapping[str, Any], identity: dict[str, Any]) -> "Study":
    """Create or resume the study in `folder`. Raises `UserError` naming what differs where its trials are others."""
    import optuna

    study = optuna.create_study(
        study_name=STUDY,
        storage=open_journal(folder),
        pruner=open_pruner(pruner),
        direction="minimize",
        load_if_exists=True,
    )
    if differences := differing_fields(with_new_names(study.user_attrs.get("identity", identity)), identity):
        raise UserError(
            f"{folder} is a study of other trials:\n"
            + "\n".join(f"  - {name}: there {there!r}, now {now!r}" for name, there, now in differences)
            + "\n  resume it as it was, choose another name=..., or remove it"
        )
    study.set_user_attr("identity", identity)
    study.set_user_attr("pruner", dict(pruner))
    return study


def open_trial(trial: Trial) -> tuple["JournalStorage", int, int]:
    """The storage of the study that `trial` belongs to, the study's id and the trial's."""
    storage = open_journal(trial.study)
    study_id = storage.get_study_id_from_name(STUDY)
    return storage, study_id, storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)


def told_to_stop(trial: Trial, log_losses: Sequence[float]) -> bool:
    """Report a trial's validations so far, the first as 0; whether the study's pruner wants it to stop.

    Optuna's pruners count from 0: `n_warmup_steps` and hyperband's `min_resource` are validations that are not judged.
    A report is made once: a resumed training catches up on what it could not report before it was killed.
    """
    import optuna

    storage, study_id, trial_id = open_trial(trial)
    reported = storage.get_trial(trial_id).intermediate_values
    for number, log_loss in enumerate(log_losses):
        if number not in reported:
            storage.set_trial_intermediate_value(trial_id, number, log_loss)
    pruner = open_pruner(storage.get_study_user_attrs(study_id)["pruner"])
    study = optuna.load_study(study_name=STUDY, storage=storage, pruner=pruner)
    return pruner.prune(study, storage.get_trial(trial_id))


def mark_pruned(trial: Trial, step: int) -> None:
    """Note in the study that the trial was stopped after optimiser step `step`."""
    storage, _, trial_id = open_trial(trial)
    storage.set_trial_user_attr(trial_id, PRUNED, step)
