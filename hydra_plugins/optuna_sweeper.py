"""`hydra/sweeper=optuna`: a sweep that searches with Optuna, prunes, and goes on where it was killed.

Hydra takes sweepers from the package `hydra_plugins` only. hydra-optuna-sweeper 1.3.0 was not taken: it cannot prune,
starts its count of trials anew with each command, leaves killed trials behind and needs Optuna 2.
"""

import fcntl
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from core.artefacts.identity import differing_fields
from core.bounds import Count, Natural, Seed
from core.config import from_mapping
from core.errors import UserError
from core.naming import names_a_run
from distill.config import Config
from distill.entry_point import launched_ranks, typed
from distill.training_run import run_identity
from students.training.studies import PRUNED, STUDY, open_journal, open_pruner

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

log = logging.getLogger(__name__)
OVER = ("COMPLETE", "PRUNED")  # states of trials that count


@dataclass(frozen=True)
class Search:
    """The bounds of the sweeper's own numbers."""

    n_trials: Count
    n_jobs: Count
    startup_trials: Natural
    seed: Seed
    max_failures: Natural


class OptunaSweeper(Sweeper):
    """Minimises what the stage returns over the sweeps among `params` and the command's overrides.

    `n_trials` are finished or pruned ones, counted over all commands that worked on the study; `n_jobs` are launched
    at a time. Up to `max_failures` trials of a command may fail, but not the first of a study.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        startup_trials: int,
        seed: int,
        max_failures: int,
        pruner: DictConfig,
        params: DictConfig,
    ):
        self.n_trials, self.n_jobs, self.startup_trials, self.seed = n_trials, n_jobs, startup_trials, seed
        self.max_failures, self.failures = max_failures, 0
        self.pruner: Any = OmegaConf.to_container(pruner)
        self.params = [f"{key!s}={value}" for key, value in params.items()]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.composed = config
        self.jobs = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from_mapping(Search, {each.name: getattr(self, each.name) for each in fields(Search)}, "hydra.sweeper")
        if find_spec("optuna") is None:
            raise UserError("hydra/sweeper=optuna needs Optuna: pip install optuna, or sweep over lists without it")
        if launched_ranks() > 1:
            raise UserError(
                "one process searches: start it without the deepspeed launcher, and give each trial its ranks with "
                "hydra/launcher=local hydra.launcher.tasks_per_node=..., or hydra/launcher=slurm"
            )
        fixed, searched = split(self.params, arguments, self.parser)
        config = shared(self.composed, fixed)
        folder = config.root / "sweeps" / f"{config.role}s" / config.run / f"fold={config.fold}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            claim(lock, folder)
            self.study = open_study(folder, self.pruner, identity(config, searched))
            log.info("the study is %s", folder)
            while batch := self.next_batch(searched):
                ours = f"sweep.study={json.dumps(str(folder))}"
                commands = [[*fixed, *values, ours, f"sweep.trial={number}"] for number, values in batch]
                returns = self.jobs.launch(commands, initial_job_idx=batch[0][0])
                for (number, values), result in zip(batch, returns, strict=True):
                    self.tell(number, values, result)
        best = self.study.best_trial
        log.info(
            "best of %d trials: %.4f with %s",
            len(self.study.trials),
            best.value,
            " ".join(best.user_attrs["overrides"]),
        )

    def next_batch(self, searched: Mapping[str, "BaseDistribution"]) -> list[tuple[int, list[str]]]:
        """(number, overrides) of the trials to launch: those that a kill left behind, then new ones; [] at the end."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        for killed in self.study.get_trials(states=[TrialState.RUNNING]):
            if PRUNED in killed.user_attrs:  # killed before the sweeper could tell
                self.study.tell(killed.number, state=TrialState.PRUNED)
            elif "overrides" not in killed.user_attrs:  # killed while it was being asked for
                self.study.tell(killed.number, state=TrialState.FAIL)
        trials = self.study.get_trials(deepcopy=False)
        over = sum(t.state.name in OVER for t in trials)
        left = [t for t in trials if t.state == TrialState.RUNNING]
        batch = [(t.number, t.user_attrs["overrides"]) for t in left[: self.n_jobs]]
        while len(batch) < min(self.n_jobs, self.n_trials - over):
            # What a trial draws depends on its number and the trials before it alone, not on when a sweep was killed.
            seed = 10_000 * self.seed + len(self.study.get_trials(deepcopy=False))
            self.study.sampler = TPESampler(n_startup_trials=self.startup_trials, seed=seed)
            trial = self.study.ask(dict(searched))
            overrides = [f"{key}={as_text(value)}" for key, value in trial.params.items()]
            trial.set_user_attr("overrides", overrides)
            batch.append((trial.number, overrides))
        return batch

    def tell(self, number: int, values: list[str], result: JobReturn) -> None:
        """Write down how a trial ended. Raises what it died of where too many have."""
        from optuna.trial import TrialState

        if result.status == JobStatus.COMPLETED:
            pruned = PRUNED in self.study.trials[number].user_attrs
            state = TrialState.PRUNED if pruned else TrialState.COMPLETE
            self.study.tell(number, None if pruned else float(result.return_value), state)
            how = "pruned" if pruned else "done"
            log.info("trial %d %s: %.4f with %s", number, how, result.return_value, " ".join(values))
            return
        self.study.tell(number, state=TrialState.FAIL)
        self.failures += 1
        # What the first one of a study died of may well await them all.
        first = not any(trial.state.name in OVER for trial in self.study.trials)
        if first or self.failures > self.max_failures:
            result.return_value  # noqa: B018  # raises it
        log.warning("trial %d failed with %s: %s", number, " ".join(values), result._return_value)


def split(
    params: Sequence[str], arguments: Sequence[str], parser: OverridesParser
) -> tuple[list[str], dict[str, "BaseDistribution"]]:
    """Overrides that stay, and what is searched over; on the same key the command wins over `params`.

    Raises `UserError` where nothing is searched, or a key that two trials could not tell their folders apart by.
    """
    texts: dict[str, tuple[str, Override]] = {}
    for text, override in zip([*params, *arguments], parser.parse_overrides([*params, *arguments]), strict=True):
        texts.pop(override.key_or_group, None)
        texts[override.key_or_group] = text, override
    searched = {o.get_key_element(): distribution(o) for _, o in texts.values() if o.is_sweep_override()}
    if not searched:
        raise UserError(
            "this sweep searches nothing: add +sweep=optuna, or a range: 'optimizer.lr=interval(1e-5,1e-3)'"
        )
    if unnamed := [key for key in searched if not names_a_run(key)]:
        raise UserError(
            f"{unnamed[0]} cannot be searched: its trials would share a folder. Search what makes another model, and "
            "start one command for each fold"
        )
    return [text for text, override in texts.values() if not override.is_sweep_override()], searched


def distribution(override: Override) -> "BaseDistribution":
    """An interval as it is (of integers where both ends are, logarithmic where tagged so), all else as choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    assert value.start is not None and value.end is not None
    if isinstance(value.start, int) and isinstance(value.end, int):
        return IntDistribution(value.start, value.end, log="log" in value.tags)
    return FloatDistribution(float(value.start), float(value.end), log="log" in value.tags)


def as_text(value: Any) -> str:
    """A drawn value as an override, four digits of a float: it becomes part of the run's name."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shared(config: DictConfig, fixed: Sequence[str]) -> Config:
    """The configuration that all trials share."""
    values: Any = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), resolve=True
    )
    return typed(values, fixed)


def identity(config: Config, searched: Mapping[str, "BaseDistribution"]) -> dict[str, Any]:
    """What makes trials comparable: what is trained but for the searched keys, and the ranges."""
    ranges = {key: repr(found) for key, found in searched.items()}
    return json.loads(json.dumps({**run_identity(config), "searched": ranges}))


def open_study(folder: Path, pruner: Mapping[str, Any], identity: dict[str, Any]) -> "Study":
    """Start the study or go on with it. Raises `UserError` naming what differs where it is one of other trials."""
    import optuna

    study = optuna.create_study(
        study_name=STUDY,
        storage=open_journal(folder),
        pruner=open_pruner(pruner),
        direction="minimize",
        load_if_exists=True,
    )
    if differences := differing_fields(study.user_attrs.get("identity", identity), identity):
        raise UserError(
            f"{folder} is a study of other trials:\n"
            + "\n".join(f"  - {name}: there {there!r}, now {now!r}" for name, there, now in differences)
            + "\n  go on with it as it was, choose another name=..., or remove it"
        )
    study.set_user_attr("identity", identity)
    study.set_user_attr("pruner", dict(pruner))
    return study


def claim(lock: IO[str], folder: Path) -> None:
    """Hold `lock` while this process lives. Raises `UserError` where another sweeper does."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another sweep works on {folder}: one at a time, hydra.sweeper.n_jobs=... for more") from error
