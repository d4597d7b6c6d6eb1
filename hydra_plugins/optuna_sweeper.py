"""`hydra/sweeper=optuna`: a sweep that searches with Optuna, prunes, and resumes after a kill.

Hydra finds sweepers in the package `hydra_plugins` only. Hydra's own Optuna sweeper (1.3.0) is not enough: it cannot
prune, counts trials anew with each command, abandons killed trials and needs Optuna 2.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from core.bounds import Count, Natural, Seed
from core.config import from_mapping
from core.errors import UserError
from core.locks import alone
from core.naming import names_a_run
from distill.config import Config
from distill.entry_point import launched_ranks, typed
from distill.training_run import run_identity
from students.training.optuna_studies import PRUNED, open_study

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)
COUNTED = ("COMPLETE", "PRUNED")  # states of the trials that n_trials counts


@dataclass(frozen=True)
class Search:
    """The bounds of the sweeper's own numbers, under the names of its attributes."""

    n_trials: Count
    n_jobs: Count
    startup_trials: Natural
    seed: Seed
    max_failures: Natural


class OptunaSweeper(Sweeper):
    """Minimises what the stage returns over the ranges among `params` and the command's overrides.

    `n_trials` counts finished and pruned trials, over all commands that worked on the study. `n_jobs` are launched at a
    time. Up to `max_failures` trials of a command may fail, but not the first of a study.
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
        # Check what was asked for
        from_mapping(Search, {each.name: getattr(self, each.name) for each in fields(Search)}, "hydra.sweeper")
        check_surroundings()
        fixed, searched = split(self.params, arguments, self.parser)
        config = shared(self.composed, fixed)

        # Search
        folder = config.root / "sweeps" / f"{config.role}s" / config.run / f"fold={config.fold}"
        with alone(folder):
            self.study = open_study(folder, self.pruner, identity(config, searched))
            log.info("the study is %s", folder)
            while trials := self.next_trials(searched):
                ours = f"sweep.study={json.dumps(str(folder))}"
                commands = [[*fixed, *values, ours, f"sweep.trial={number}"] for number, values in trials]
                returns = self.jobs.launch(commands, initial_job_idx=trials[0][0])
                for (number, values), result in zip(trials, returns, strict=True):
                    self.tell(number, values, result)

        # Report
        best, tried = self.study.best_trial, len(self.study.trials)
        log.info("best of %d trials: %.4f with %s", tried, best.value, " ".join(best.user_attrs["overrides"]))

    def next_trials(self, searched: Mapping[str, "BaseDistribution"]) -> list[tuple[int, list[str]]]:
        """(number, overrides) of the trials to launch: those that a kill left behind, then new ones; [] at the end."""
        from optuna.trial import TrialState

        self.close_killed_trials()
        trials = self.study.get_trials(deepcopy=False)
        counted = sum(t.state.name in COUNTED for t in trials)
        left = [t for t in trials if t.state == TrialState.RUNNING]
        chosen = [(t.number, t.user_attrs["overrides"]) for t in left[: self.n_jobs]]
        while len(chosen) < min(self.n_jobs, self.n_trials - counted):
            chosen.append(self.new_trial(searched))
        return chosen

    def close_killed_trials(self) -> None:
        """Give a state to the trials that were killed before the sweeper could; the others are launched again."""
        from optuna.trial import TrialState

        for killed in self.study.get_trials(states=[TrialState.RUNNING]):
            if PRUNED in killed.user_attrs:
                self.study.tell(killed.number, state=TrialState.PRUNED)
            elif "overrides" not in killed.user_attrs:  # before it had drawn its values
                self.study.tell(killed.number, state=TrialState.FAIL)

    def new_trial(self, searched: Mapping[str, "BaseDistribution"]) -> tuple[int, list[str]]:
        """The next trial. What it draws depends on its number and the trials before it, not on any kill."""
        from optuna.samplers import TPESampler

        seed = 10_000 * self.seed + len(self.study.get_trials(deepcopy=False))
        self.study.sampler = TPESampler(n_startup_trials=self.startup_trials, seed=seed)
        trial = self.study.ask(dict(searched))
        overrides = [f"{key}={as_text(value)}" for key, value in trial.params.items()]
        trial.set_user_attr("overrides", overrides)
        return trial.number, overrides

    def tell(self, number: int, values: list[str], result: JobReturn) -> None:
        """Record how a trial ended. Where too many have failed, raises the error of this one."""
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
        # The error of a study's first trial probably awaits all others.
        first = not any(trial.state.name in COUNTED for trial in self.study.trials)
        if first or self.failures > self.max_failures:
            result.return_value  # noqa: B018  # raises it
        log.warning("trial %d failed with %s: %s", number, " ".join(values), result._return_value)


def check_surroundings() -> None:
    """Raise `UserError` without Optuna, and under a launcher that starts several processes."""
    if find_spec("optuna") is None:
        raise UserError("hydra/sweeper=optuna needs Optuna: pip install optuna, or sweep over lists without it")
    if launched_ranks() > 1:
        raise UserError(
            "one process searches: start it without the deepspeed launcher, and give each trial its ranks with "
            "hydra/launcher=local hydra.launcher.tasks_per_node=..., or hydra/launcher=slurm"
        )


def split(
    params: Sequence[str], arguments: Sequence[str], parser: OverridesParser
) -> tuple[list[str], dict[str, "BaseDistribution"]]:
    """The overrides that stay, and the ranges that are searched; on the same key the command overrides `params`.

    Raises `UserError` where nothing is searched, and for a key whose trials would share a folder.
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
            f"{unnamed[0]} cannot be searched: it makes no other model, so its trials would share a folder. Start one "
            "command for each value instead"
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
    """A drawn value as an override; floats with four digits, since it becomes part of the run's name."""
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
