"""What a machine lacks that has torch, transformers and little else: Hydra, and polars.

Hydra composes conf/; what the checks need of that are a few lines over YAML, and a test holds them against Hydra.
polars reads tables, and no check reads one, but modules that the checks import name its types as they are imported.
"""

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import yaml

CONF = Path(__file__).resolve().parent.parent / "conf"
OWN = "_self_"


def composed(*overrides: str) -> dict[str, Any]:
    """The plain values of conf/config.yaml: `group=name` chooses a file, `key.below=value` sets one value."""
    chosen: dict[str, str] = {}
    changed: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        (chosen if (CONF / key).is_dir() else changed)[key] = value
    root = _read(CONF / "config.yaml")
    groups = {group: name for entry in root.pop("defaults") if entry != OWN for group, name in entry.items()}
    own = {key: value for key, value in root.items() if key != "hydra"}
    files = {group: name for group, name in (groups | chosen).items() if not group.startswith("override ")}
    values = {group: _group(group, name) for group, name in files.items()} | own
    for key, value in changed.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place[part]
        place[last] = yaml.safe_load(value)
    return values


def _group(group: str, name: str) -> dict[str, Any]:
    """One file of a group, over the files that its own defaults name: `zero0`, or `/scorer@scorer: vllm`."""
    own = _read(CONF / group / f"{name}.yaml")
    values: dict[str, Any] = {}
    for entry in own.pop("defaults", []):
        if isinstance(entry, Mapping):
            ((place, other),) = entry.items()
            source, _, key = place.removeprefix("/").partition("@")
            values = _merged(values, {key: _group(source, other)})
        elif entry != OWN:
            values = _merged(values, _group(group, entry))
    return _merged(values, own)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, Mapping) and k in below}
    return {**below, **above, **both}


def _read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


class Named(ModuleType):
    """A module that is not there, for those that only name what is in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


def stand_in(package: str = "polars") -> bool:
    """Let modules that name the types of `package` be imported where it is not installed; whether that was needed."""
    if package in sys.modules or find_spec(package):
        return isinstance(sys.modules.get(package), Named)
    sys.modules[package] = Named(package)
    sys.modules[package].__spec__ = ModuleSpec(package, None)  # other packages look whether it is installed
    return True
