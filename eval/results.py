"""Results as JSON files: the fields of a frozen dataclass are the keys, and what is read back is the same dataclass."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from core.errors import UserError
from core.json_files import write_json

R = TypeVar("R")
SEEDS = "seeds.json"  # a `SeedSummary`, beside an evaluation's metrics


def write_result(path: Path, result: Any) -> None:
    """Write a dataclass of numbers, texts, and further dataclasses, in lists and by name."""
    write_json(path, asdict(result))


def read_result(kind: type[R], path: Path) -> R:
    """What `write_result` wrote of a `kind`; keys that it does not know are left out.

    Raises `UserError` where the file lacks a field: an earlier version wrote it.
    """
    try:
        found: R = _built(kind, json.loads(path.read_text()))
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no {kind.__name__} as this version writes it ({error}): make it again with overwrite=true"
        ) from error
    return found


def _built(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if NoneType in arguments:  # an optional field
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else _built(kind, value)
    if is_dataclass(kind):
        return _dataclass(kind, value)
    if origin is Mapping:
        return {key: _built(arguments[1], item) for key, item in value.items()}
    if origin is Sequence:
        return [_built(arguments[0], item) for item in value]
    return tuple(value) if origin is tuple else value


def _dataclass(kind: Any, value: Mapping[str, Any]) -> Any:
    """Of `kind` and the dataclasses that extend it the one whose fields are those of `value`."""
    kind = max(_family(kind), key=lambda k: (len(_names(k) & value.keys()), -len(_names(k))))
    if missing := [f.name for f in fields(kind) if f.name not in value and f.default is f.default_factory is MISSING]:
        raise LookupError(f"it lacks {', '.join(missing)}")
    hints = get_type_hints(kind)
    return kind(**{name: _built(hints[name], value[name]) for name in _names(kind) & value.keys()})


def _family(kind: Any) -> Iterator[Any]:
    yield kind
    for extended in kind.__subclasses__():
        yield from _family(extended)


def _names(kind: Any) -> set[str]:
    return {f.name for f in fields(kind)}
