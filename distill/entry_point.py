"""What every entry point does alike: compose the configuration, type it, run, and give one message for bad input."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config import from_mapping
from core.errors import UserError
from core.exits import ChecksFailed, plain_ends, refuse, surroundings_explained
from core.naming import check_names, expanded, run_name
from core.screen import log_of, quietly
from distill.command_line import CONF, composed, print_help, refuse_old_keys, told
from distill.config import Config

if TYPE_CHECKING:
    from omegaconf import DictConfig


def entry_point(
    stage: Callable[[Config], Any], reads: str, *, libraries: bool = False, only_looks: bool = False
) -> Callable[[], Any]:
    """Turn `stage(config)` into a Hydra entry point that exits with 2 and one message on bad input.

    `reads`: the keys and groups that the stage reads, by spaces; `--help` explains them. What the `libraries` of a
    stage write goes to a log file below `paths.root`. One that `only_looks` leaves no trace of Hydra either, and knows
    none of its flags. `UserError` is what a user can mend, and so are full disks and missing permissions; anything else
    is our defect and keeps its traceback.
    """

    def run(cfg: "DictConfig") -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        try:
            refuse_multirun_of_ranks()
            config = typed(values, HydraConfig.get().overrides.task)
            log = log_of(config.root, Path(stage.__code__.co_filename), config.run)
            with quietly(log) if libraries else nullcontext(), surroundings_explained():
                return loss_of(stage, config)
        except (UserError, ChecksFailed) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # to the sweeper: the other runs go on
            refuse(error)  # from here, because Hydra would print a line of its own first

    def main() -> None:
        with plain_ends():
            # Imported here: a Ctrl-C while it loads is answered like any other.
            import hydra
            from hydra.errors import HydraException
            from omegaconf import OmegaConf
            from omegaconf.errors import OmegaConfBaseException

            from core.naming import home

            arguments = sys.argv[1:]
            refuse_old_keys(arguments)
            os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's own errors rise to here
            OmegaConf.register_new_resolver("home", home, replace=True)
            try:
                with surroundings_explained():
                    if {"-h", "--help"} & {*arguments}:
                        print_help(str(stage.__globals__["__doc__"]), reads.split(), arguments)
                    elif only_looks:
                        run(composed(arguments))
                    else:
                        hydra.main(version_base="1.3", config_path=CONF, config_name="config")(run)()
            except HydraException as error:
                refuse(told(error, arguments))
            except (OmegaConfBaseException, UserError, ChecksFailed) as error:
                refuse(error)

    return main


def loss_of(stage: Callable[[Config], Any], config: Config) -> Any:
    """What the stage returns, which sweeps minimise; of a run that a search has stopped, its last loss."""
    from students.training.optuna_studies import Pruned

    try:
        return stage(config)
    except Pruned as stopped:
        return stopped.log_loss


def typed(values: Mapping[str, Any], overrides: Iterable[str]) -> Config:
    """The configuration of the plain nested `values` that `overrides` led to, its paths expanded and its run named.

    Raises one `UserError` for all that is of the wrong type, and one for names that no folder can have.
    """
    config = from_mapping(Config, {**expanded(values), "run": ""})
    check_names(values)
    return replace(config, run=run_name(config.name, overrides))


def refuse_multirun_of_ranks() -> None:
    """Raise `UserError` for `-m` under the deepspeed launcher: the ranks of a second run would not find each other."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config, ranks = HydraConfig.get(), launched_ranks()
    if hydra_config.mode == RunMode.MULTIRUN and ranks > 1 and hydra_config.launcher._target_.endswith("BasicLauncher"):
        raise UserError(
            f"-m with {ranks} ranks: start one command for each run, or let a launcher give each run its ranks: "
            f"python -m distill.student -m ... hydra/launcher=local hydra.launcher.tasks_per_node={ranks}"
        )


def launched_ranks() -> int:
    """How many ranks the deepspeed launcher, or another one, started this process as one of; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))
