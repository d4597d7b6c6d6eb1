"""What every door does alike: compose the configuration, type it, run, and turn bad input into one clear message."""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.config import Config, from_mapping
from distill.errors import OtherRankError, UserError
from distill.studies import Pruned

CONF = str(Path(__file__).resolve().parent.parent / "conf")
# Overrides below these keys make another model, so they become part of the run's name; all others do not.
NAMING = (
    *("seed", "loss", "student", "optimizer", "prompt"),
    *("teacher.name", "teacher.rows", "teacher.max_entropy"),
)


class ChecksFailed(Exception):
    """What was asked for is made and kept, and may not be used: exit code 1, or in a multirun a failed run of it."""


def run_name(name: str, overrides: Iterable[str]) -> str:
    """`name` plus the overrides that change the trained model, so that no variant writes over another.

    The same overrides name the same run at every door: `demo,loss=votes` is trained, exported and evaluated
    under that name.
    """
    plain = [override.lstrip("+~").replace(",", "+").replace("/", "+") for override in overrides]
    return variant(name, *(override for override in plain if names_a_run(override.split("=")[0])))


def names_a_run(key: str) -> bool:
    """Whether overriding `key` makes another model, and so another run."""
    plain = key.lstrip("+~").split("@")[0]
    return any(plain == n or plain.startswith(f"{n}.") for n in NAMING)


def variant(run: str, *overrides: str) -> str:
    """The name of `run` with further overrides, each key once, in alphabetical order."""
    name, *given = run.split(",")
    values = dict(o.split("=", 1) for o in (*given, *overrides))
    return ",".join([name, *(f"{key}={values[key]}" for key in sorted(values))])


def door(stage: Callable[[Config], Any]) -> Callable[[], Any]:
    """Turn `stage(config)` into a Hydra entry point that exits with 2 and one message on bad input.

    `UserError` is what a user can mend (house rule 6); anything else is our defect and keeps its traceback.
    """

    def run(cfg: DictConfig) -> Any:
        values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        values["run"] = run_name(values["name"], HydraConfig.get().overrides.task)
        try:
            refuse_multirun_of_ranks()
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports kernels that a CPU does without
            return stage(from_mapping(Config, values))
        except Pruned as stopped:
            return stopped.log_loss
        except (UserError, ChecksFailed) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # to the sweeper: the other runs go on
            refuse(error)  # from here, because Hydra would print a line of its own first

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's own errors rise to here
        try:
            hydra.main(version_base="1.3", config_path=CONF, config_name="config")(run)()
        except (HydraException, OmegaConfBaseException, UserError, ChecksFailed) as error:
            refuse(error)

    return main


def launched_ranks() -> int:
    """How many ranks the deepspeed launcher, or another one, started this process as one of; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def refuse_multirun_of_ranks() -> None:
    """Raise `UserError` for `-m` under the deepspeed launcher: the ranks of a second run would not find each other."""
    hydra_config, ranks = HydraConfig.get(), launched_ranks()
    if hydra_config.mode == RunMode.MULTIRUN and ranks > 1 and hydra_config.launcher._target_.endswith("BasicLauncher"):
        raise UserError(
            f"-m with {ranks} ranks: start one command for each run, or let a launcher give each run its ranks: "
            f"python -m distill.student -m ... hydra/launcher=local hydra.launcher.tasks_per_node={ranks}"
        )


def refuse(error: Exception) -> NoReturn:
    """Say what is wrong, without a traceback, and exit with 2, or with 1 where what was made failed its checks."""
    if not isinstance(error, OtherRankError):
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1 if isinstance(error, ChecksFailed) else 2)
