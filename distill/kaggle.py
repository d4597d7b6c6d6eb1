"""Turn an export into a Kaggle notebook that needs no internet: python -m distill.kaggle +exp=demo output=folder

The notebook predicts as this command says: it takes over the experiment and the overrides of predict.*,
scorers.exported and canaries.on_failure. deploy/kaggle/README.md explains what to do with the folder.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.errors import UserError
from distill.artefacts import judge_folder
from distill.config import Config
from distill.entry_point import entry_point, typed

log = logging.getLogger(__name__)
SCORER = "scorers.exported"
READS = "name output overwrite predict.model scorers.exported t4.memory_gb export paths"


def main(config: Config) -> None:
    from hydra.core.hydra_config import HydraConfig

    from core.exported import open_exported
    from deploy.kaggle.bundle import check_output, write_bundle
    from deploy.kaggle.runtimes import backends_for, check_runs_on_kaggle

    # Check
    if config.output is None:
        raise UserError("output=null: name the folder to write, as in output=kaggle-bundle")
    output = Path(config.output)
    check_output(output, config.overwrite)
    model = open_exported(judge_folder(config, config.predict.model)).folder
    check_runs_on_kaggle(model)

    # Write
    given = HydraConfig.get().overrides.task
    backends = backends_for(model, config.scorers.exported, chooses_scorer(given), config.t4.memory_gb)
    overrides = notebook_overrides(given)
    backends = [name for name in backends if name == config.scorers.exported.backend or composes(overrides, name)]
    write_bundle(output, model, config.run, overrides, backends)
    log.info("%s is written, for %s; deploy/kaggle/README.md explains the next steps", output, " and ".join(backends))


def chooses_scorer(overrides: Iterable[str]) -> bool:
    """Whether the command says which scorer reads the export, or how."""
    return any(key_of(override).startswith((SCORER, f"scorer@{SCORER}")) for override in overrides)


def composes(overrides: Iterable[str], backend: str) -> bool:
    """Whether the notebook can choose this backend: an experiment's keys of another one do not fit it."""
    from hydra import compose
    from omegaconf import OmegaConf

    chosen = [*overrides, f"scorer@{SCORER}={backend}"]
    values: Any = OmegaConf.to_container(compose("config", overrides=chosen), resolve=True)
    try:
        typed(values, chosen)
    except UserError as error:
        log.warning("the notebook cannot fall back on %s: %s", backend, error)
        return False
    return True


def notebook_overrides(overrides: Iterable[str]) -> list[str]:
    """Those that the notebook's own command repeats: the experiment and how to predict.

    Not the model's place, and not the scorer's backend: the notebook sets both itself.
    """
    last = {key_of(override): override for override in overrides}
    own, groups = ("exp", "canaries.on_failure"), ("predict.", f"{SCORER}.")
    return [o for key, o in last.items() if key in own or (key.startswith(groups) and key != "predict.model")]


def key_of(override: str) -> str:
    return override.lstrip("+").split("=")[0]


if __name__ == "__main__":
    entry_point(main, READS)()
