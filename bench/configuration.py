"""The configuration that benchmarks measure with: `conf/`, as the stages have it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.command_line import CONF
from distill.config import Config
from distill.entry_point import typed


def configured(overrides: Sequence[str]) -> Config:
    """The whole configuration under Hydra's `overrides`."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(CONF, version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("config", overrides=[*overrides]), resolve=True)
    return typed(values, overrides)


def file_of(name: str) -> dict[str, Any]:
    """The values of one file below conf/, such as `prompt/default`, without those that its defaults name."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(Path(CONF, f"{name}.yaml")))
    return {key: value for key, value in values.items() if key != "defaults"}
