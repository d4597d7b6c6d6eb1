"""What every door does alike: compose the configuration, type it, run, and turn bad input into one clear message."""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.config import Config, from_mapping

CONF = str(Path(__file__).resolve().parent.parent / "conf")
# Overrides below these keys make another model, so they become part of the run's name; all others do not.
NAMING = (
    *("seed", "loss", "student", "optimizer", "prompt"),
    *("teacher.name", "teacher.rows", "teacher.max_entropy"),
)


def run_name(name: str, overrides: Iterable[str]) -> str:
    """`name` plus the overrides that change the trained model, so that no variant writes over another.

    The same overrides name the same run at every door: `demo,loss=votes` is trained, exported and evaluated
    under that name.
    """
    plain = [override.lstrip("+~").replace(",", "+").replace("/", "+") for override in overrides]
    keys = [override.split("=")[0].split("@")[0] for override in plain]
    naming = [any(key == n or key.startswith(f"{n}.") for n in NAMING) for key in keys]
    return variant(name, *(override for override, named in zip(plain, naming, strict=True) if named))


def variant(run: str, *overrides: str) -> str:
    """The name of `run` with further overrides, each key once, in alphabetical order."""
    name, *given = run.split(",")
    values = dict(o.split("=", 1) for o in (*given, *overrides))
    return ",".join([name, *(f"{key}={values[key]}" for key in sorted(values))])


def door(stage: Callable[[Config], Any]) -> Callable[[], Any]:
    """Turn `stage(config)` into a Hydra entry point that exits with 2 and one message on bad input.

    `ValueError` is what a user can mend (house rule 6); anything else is our defect and keeps its traceback.
    """

    def run(cfg: DictConfig) -> Any:
        values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        values["run"] = run_name(values["name"], HydraConfig.get().overrides.task)
        try:
            return stage(from_mapping(Config, values))
        except ValueError as error:
            refuse(error)  # from here, because Hydra would print a line of its own first

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's own errors rise to here
        try:
            hydra.main(version_base="1.3", config_path=CONF, config_name="config")(run)()
        except (HydraException, OmegaConfBaseException) as error:
            refuse(error)

    return main


def refuse(error: Exception) -> NoReturn:
    """Say what is wrong, without a traceback, and exit with 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
