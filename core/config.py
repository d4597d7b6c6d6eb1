"""The typed configuration: Hydra's DictConfig becomes these frozen dataclasses at the entry point and goes no further.

Every number lives in `conf/`; nothing here has a default, but for a group that only one choice of its group has
(`chat: ChatConfig | None = None`), which elsewhere is absent. A key that is unknown, missing, of the wrong type or out
of its bounds (`core/bounds.py`) is an error, and all errors of a configuration are reported at once.
"""

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from core.bounds import is_finite
from core.errors import UserError
from core.renamed import advice, removed
from core.suggestions import keys, meant, meant_keys, question

C = TypeVar("C")


def from_mapping(kind: type[C], values: Mapping[str, Any], at: str = "") -> C:
    """Build dataclass `kind` from nested mappings. Raises one `UserError` that lists every problem found.

    `at` is the place of `values` in the whole configuration, for the message.
    """
    problems = _Problems(kind, at)
    built = _dataclass(kind, values, at, problems)
    if problems:
        raise UserError("the configuration has problems:\n" + "\n".join(f"  - {p}" for p in problems))
    return built


class _Problems(list[str]):
    """What was found of a configuration of `kind`, whose place is `at`."""

    def __init__(self, kind: Any, at: str):
        super().__init__()
        self.kind, self.at = kind, at

    def nearest(self, key: str) -> str:
        """Which keys an unknown one probably stands for, as a question; "" where none is near."""
        return question(meant_keys(key, [_join(self.at, known) for known in keys(self.kind)]))


def to_mapping(config: Any) -> dict[str, Any]:
    """The plain nested dict of a configuration, as manifests store it."""
    return asdict(config)


def _dataclass(kind: Any, values: Any, at: str, problems: _Problems) -> Any:
    if not isinstance(values, Mapping):
        problems.append(
            f"{at or 'config'}={values!r}: expected a group of keys ({', '.join(f.name for f in fields(kind))})"
        )
        return None
    hints = get_type_hints(kind, include_extras=True)
    for key in values:
        if key not in hints:
            place = _join(at, key)
            remedy = advice(place) or problems.nearest(place) or f"known here: {', '.join(hints)}"
            problems.append(f"{place}={values[key]!r}: unknown key; {remedy}")
    for key in (field.name for field in fields(kind) if field.default is MISSING):
        if key not in values:
            problems.append(f"{_join(at, key)}: missing; set it in conf/ or on the command line")
    parsed = {key: _value(hint, values[key], _join(at, key), problems) for key, hint in hints.items() if key in values}
    return None if problems else kind(**parsed)


def _value(hint: Any, value: Any, at: str, problems: _Problems, otherwise: str = "") -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _dataclass(hint, value, at, problems)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        if len(options) > 1 and all(map(is_dataclass, options)):
            return _tagged(options, value, at, problems)
        fitting = [a for a in options if _fits(a, value)]
        null = ", or null" if type(None) in arguments else ""
        return _value(fitting[0] if fitting else options[0], value, at, problems, null)
    if origin is Annotated:
        plain, *bounds = arguments
        before = len(problems)
        parsed = _value(plain, value, at, problems, otherwise)
        if len(problems) == before and (broken := [bound for bound in bounds if not bound.allows(parsed)]):
            problems.append(f"{at}={value!r}: give {broken[0].advice}{otherwise}")
        return parsed
    if not _fits(hint, value):
        expected = (
            _one_of(value, arguments)
            if origin is Literal
            else f"expected {_describe(hint)}, got {type(value).__name__}"
        )
        problems.append(f"{at}={value!r}: {removed(at, value) or expected}")
        return None
    if isinstance(value, int | float) and not is_finite(value):
        problems.append(f"{at}={value!r}: give a finite number{otherwise}")
        return None
    if origin is list:
        return [_value(arguments[0], item, f"{at}[{i}]", problems) for i, item in enumerate(value)]
    if origin is dict:
        return {key: _value(arguments[1], item, _join(at, key), problems) for key, item in value.items()}
    if hint is Any:  # another library's own settings
        kind = dict[str, Any] if isinstance(value, Mapping) else list[Any] if isinstance(value, list) else None
        return value if kind is None else _value(kind, value, at, problems)
    return float(value) if hint is float else value


def _tagged(options: list[Any], value: Any, at: str, problems: _Problems) -> Any:
    """One of several dataclasses, told apart by the only value that each allows for a common field."""
    tags = [
        {f: get_args(h)[0] for f, h in get_type_hints(o).items() if get_origin(h) is Literal and len(get_args(h)) == 1}
        for o in options
    ]
    (tag,) = set.intersection(*map(set, tags))
    names = {each[tag]: option for each, option in zip(tags, options, strict=True)}
    found = value.get(tag) if isinstance(value, Mapping) else None
    if found not in names:
        problems.append(f"{_join(at, tag)}={found!r}: {_one_of(found, list(names))}")
        return None
    return _dataclass(names[found], value, at, problems)


def _fits(hint: Any, value: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _fits(get_args(hint)[0], value)
    if is_dataclass(hint) or origin is dict:
        return isinstance(value, Mapping)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(hint))
    if origin is list:
        return isinstance(value, list)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _one_of(value: Any, choices: Sequence[Any]) -> str:
    """What is expected in place of a value that is no choice, and which one it probably stands for."""
    names = [*map(str, choices)]
    near = meant(value, names) if isinstance(value, str) else None
    return f"expected one of {', '.join(names)}" + (f"; {question([near])}" if near else "")


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _describe(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(map(_describe, arguments))}]"
    return str(getattr(hint, "__name__", hint))


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key
