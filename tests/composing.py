"""Composing the real configuration in tests, as an entry point would."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from core.config import from_mapping
from core.naming import run_name
from core.prompts import TemplateConfig
from distill.command_line import CONF
from distill.config import Config
from distill.entry_point import typed
from teachers.scorers.config import RayConfig, ServerConfig, TransformersConfig, VllmConfig

TEMPLATE = TemplateConfig(
    instruction="Which is better?",
    question="\nQ: ",
    answer_a="\nA: ",
    answer_b="\nB: ",
    verdict="\nBest:",
    cut=" [cut] ",
    omitted="\n[left out]",
    model_a="\nA by ",
    model_b="\nB by ",
)

KINDS: dict[str, Any] = {
    "vllm": VllmConfig,
    "transformers": TransformersConfig,
    "server": ServerConfig,
    "ray": RayConfig,
}


def composed(*overrides: str) -> dict[str, Any]:
    """The plain values that an entry point would receive for `overrides`."""
    values = plain(*overrides)
    return {**values, "run": run_name(values["name"], overrides)}


def plain(*overrides: str) -> dict[str, Any]:
    """The same without a run's name, for which there may be too many overrides."""
    choices = tuple(override for override in overrides if chooses_files(override))
    config = deepcopy(of_files("config", *choices))
    values = OverridesParser.create().parse_overrides([each for each in overrides if each not in choices])
    ConfigLoaderImpl._apply_overrides_to_config(values, config)  # as Hydra does, and also last
    found: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return found


def chooses_files(override: str) -> bool:
    """Whether it chooses a file of a group or is Hydra's own; else it is the value of a key."""
    key = override.lstrip("+~").partition("=")[0]
    return "/" in key or "@" in key or key.startswith("hydra.") or Path(CONF, key).is_dir()


@cache
def of_files(config: str, *choices: str) -> DictConfig:
    """What Hydra composes of files, which takes it a third of a second: tests do it hundreds of times, and alike."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(config, overrides=[*choices])


def configured(*overrides: str) -> Config:
    """The typed configuration for `overrides`."""
    return typed(composed(*overrides), overrides)


def scorer(backend: str, **changes: Any) -> Any:
    """The configuration of a scorer as `conf/` has it, with `changes`."""
    values = OmegaConf.to_container(of_files(f"scorer/{backend}")["scorer"], resolve=True)
    assert isinstance(values, dict)
    return from_mapping(KINDS[backend], {**values, **changes})
