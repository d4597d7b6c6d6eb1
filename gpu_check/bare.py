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
        (chosen if (CONF / key.partition("@")[0]).is_dir() else changed)[key] = value
    root = _read(CONF / "config.yaml")
    defaults = [entry for entry in root.pop("defaults") if entry != OWN]
    groups = {key: name for entry in defaults for key, name in entry.items() if not key.startswith("override ")}
    values: dict[str, Any] = {}
    for key, name in (groups | chosen).items():
        values = _merged(values, _placed(key, name))
    values |= {key: value for key, value in root.items() if key != "hydra"}
    for key, value in changed.items():
        values = _merged(values, _at(key, yaml.safe_load(value)))
    return values


def _placed(entry: str, name: str) -> dict[str, Any]:
    """What an entry of defaults chooses, at its place: `engine`, or `/scorer@scorers.teacher`."""
    group, _, place = entry.removeprefix("/").partition("@")
    return _at(place or group, _file(group, name))


def _file(group: str, name: str) -> dict[str, Any]:
    """One file of a group, over the files that its own defaults name."""
    own = _read(CONF / group / f"{name}.yaml")
    values: dict[str, Any] = {}
    for entry in own.pop("defaults", []):
        if isinstance(entry, Mapping):
            for other, chosen in entry.items():
                values = _merged(values, _placed(other, chosen))
        elif entry != OWN:
            values = _merged(values, _file(group, entry))
    return _merged(values, own)


def _at(key: str, value: Any) -> dict[str, Any]:
    """`value` below the parts of a dotted key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


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
