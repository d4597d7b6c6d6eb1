"""Composing the real configuration in tests, as an entry point would."""

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

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
    with initialize_config_dir(CONF, version_base="1.3"):
        values = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def configured(*overrides: str) -> Config:
    """The typed configuration for `overrides`."""
    return typed(composed(*overrides), overrides)


def scorer(backend: str, **changes: Any) -> Any:
    """The configuration of a scorer as `conf/` has it, with `changes`."""
    with initialize_config_dir(CONF, version_base="1.3"):
        values = OmegaConf.to_container(compose(f"scorer/{backend}")["scorer"], resolve=True)
    assert isinstance(values, dict)
    return from_mapping(KINDS[backend], {**values, **changes})
