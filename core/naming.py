"""Names and paths as users give them, made inert before anything else sees them.

A name becomes a folder's name, and a folder's name is read by globs, shells and other programs. So names of runs hold
only letters, digits and `._+-@` in ASCII, `=` between key and value, `,` between overrides. `~` is expanded here, once.
"""

import glob
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from core.errors import UserError

# Overrides below these keys make another model, so they become part of the run's name; all others do not.
NAMING = (
    *("seed", "loss", "model", "train", "optimizer", "prompt"),
    *("teacher.name", "teacher.rows", "teacher.max_entropy", "teacher.temperature_scaling"),
)
NAMES = ("name", "data.name", "teacher.name", "teacher.mixture.teachers")
PATHS = (
    *("paths.root", "input", "output", "check", "benchmark", "data.files", "data.hub", "engine.offload", "eval.judges"),
    *(
        "model.base",
        "teacher.path",
        "teacher.model",
        "teacher.stored.file",
        "teacher.chat.template",
        "predict.model",
        "serve.model",
        "plan.measured",
    ),
)
NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
INERT = re.compile("[A-Za-z0-9_.+-]{1,64}")
ACTIVE = re.compile("[^A-Za-z0-9_.-]+")
SHOWN = 40  # characters of a value that is shortened to a hash
NOT_UTF8 = "the name is not UTF-8: rename the file"
LONGEST = 240  # bytes of a run's name: a file's name has at most 255, and some of ours are longer than the run's
OVERRIDE = re.compile(r",(?=[~+]*[\w.@/]+=)")  # the comma before one, not those in the list before it


def run_name(name: str, overrides: Iterable[str]) -> str:
    """`name` plus the overrides that change the trained model, so that no variant writes over another.

    The same overrides name the same run at every entry point: `demo,loss=votes` is trained, exported and evaluated
    under that name. Raises `UserError` where there are too many for a folder's name.
    """
    return variant(name, *(override for override in overrides if names_a_run(override.split("=")[0])))


def names_a_run(key: str) -> bool:
    """Whether overriding `key` makes another model, and so another run."""
    plain = key.lstrip("+~").split("@")[0]
    return any(plain == n or plain.startswith(f"{n}.") for n in NAMING)


def variant(run: str, *overrides: str) -> str:
    """The name of `run` with further overrides, each key once, in alphabetical order."""
    name, *given = run.split(",")
    values = dict(override.split("=", 1) for override in given)
    for override in overrides:
        key, _, value = override.partition("=")
        values[key.lstrip("+~").replace("/", "+")] = spelled(value)
    found = ",".join([name, *(f"{key}={values[key]}" for key in sorted(values))])
    if len(found.encode()) > LONGEST:
        raise UserError(
            f"the overrides make a run's name of {len(found.encode())} bytes, at most {LONGEST} fit into a folder's: "
            f"write them into an experiment, conf/exp/NAME.yaml. The name would be {found}"
        )
    return found


def without(run: str, key: str) -> str:
    """The name of `run` less the override of a `key`."""
    name, *given = run.split(",")
    return ",".join([name, *(override for override in given if override.split("=")[0] != key)])


def spelled(value: str) -> str:
    """An override's value as a folder's name spells it: a plain one as it is, any other readably and with a hash.

    `[q_proj,v_proj]` and `[q_proj, v_proj]` are one value. What this gives is plain, so it stays as it is.
    """
    if INERT.fullmatch(value):
        return value
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"key={value}").value()
    text = parsed if isinstance(parsed, str) else json.dumps(parsed, sort_keys=True, default=str)
    if INERT.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{ACTIVE.sub('+', text).strip('+')[:SHOWN]}-{digest}"


def split_overrides(text: str) -> list[str]:
    """Overrides that are joined by commas: `loss=kl,model.lora.targets=[q_proj,v_proj]` are two."""
    return OVERRIDE.split(text)


def check_names(values: Mapping[str, Any]) -> None:
    """Raise one `UserError` with every name (`NAMES`) that cannot be a folder's name."""
    problems = []
    for key in NAMES:
        given = found(values, key)
        for name in given if isinstance(given, list) else [given]:
            if isinstance(name, str) and not NAME.fullmatch(name):
                problems.append(f"{key}={name!r}")
    if problems:
        raise UserError(
            f"{', '.join(problems)}: it becomes a folder's name, so use up to 100 letters (a to z), digits and _.+- "
            "and begin with a letter, a digit or _"
        )


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain nested values of a configuration with `~` expanded in every path (`PATHS`).

    Raises `UserError` where no such home is known, and for a path that is not UTF-8, which no manifest could hold.
    """
    result: dict[str, Any] = deepcopy(dict(values))
    for key in PATHS:
        *groups, last = key.split(".")
        group = found(result, ".".join(groups)) if groups else result
        if isinstance(group, dict) and last in group:
            group[last] = _expanded(key, group[last])
    return result


def _expanded(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(key, item) for item in value]
    if isinstance(value, dict):
        return {name: _expanded(f"{key}.{name}", item) for name, item in value.items()}
    return home(value, key) if isinstance(value, str) else value


def home(path: str, key: str = "paths.root") -> str:
    """`path` with a leading `~` or `~user` expanded; `key` is what named it."""
    if not is_utf8(path):
        raise UserError(f"{key}={path!a}: {NOT_UTF8}")
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise UserError(f"{key}={path}: no home folder is known for it: write the whole path, or ./~ for such a name")
    return whole


def is_utf8(path: str) -> bool:
    """Whether a path is text: the bytes of a file's name need not be UTF-8, and then nothing can write them down."""
    return "\0" not in path and path.encode(errors="replace").decode() == path


def found(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None  # type: ignore[assignment]
    return values


@contextmanager
def inert(path: Path) -> Iterator[Path]:
    """The folder `path` for a library that takes paths for patterns: itself, or a link where it would be a pattern."""
    whole = str(path.absolute())
    if glob.escape(whole) == whole:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "linked")
        link.symlink_to(whole)
        yield link
