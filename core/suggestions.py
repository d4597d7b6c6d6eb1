"""What a misspelt key or choice was meant to be: the nearest of those that there are."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any, get_args, get_type_hints

NEAR = 0.75  # difflib's ratio of two keys, or of their last parts
NAMED = 3
OF_LAST = 0.97  # so that of two keys alike in their last parts the one in the right group wins


def keys(kind: Any) -> Iterator[str]:
    """Every dotted key of a configuration dataclass, groups among them."""
    for name, hint in get_type_hints(kind).items():
        yield name
        for group in (hint, *get_args(hint)):
            if is_dataclass(group):
                yield from (f"{name}.{key}" for key in keys(group))


def meant_keys(key: str, known: Iterable[str]) -> list[str]:
    """The known keys nearest to a dotted one: misspelt, in another group, or both; none where none is near."""
    last = key.rpartition(".")[2]
    scored = [(max(_alike(key, k), OF_LAST * _alike(last, k.rpartition(".")[2])), k) for k in {*known} - {key}]
    best = max((score for score, _ in scored), default=0.0)
    return sorted(k for score, k in scored if score == best)[:NAMED] if best >= NEAR else []


def meant(word: str, known: Sequence[str]) -> str | None:
    """The one of `known` nearest to a word; None where none is near."""
    return next(iter(get_close_matches(word, known, 1)), None)


def question(found: Sequence[str]) -> str:
    """What to ask of somebody who probably meant one of `found`; "" for none."""
    return f"did you mean {' or '.join(found)}?" if found else ""


def of_override(message: str, given: Iterable[str], known: Sequence[str], choices: dict[str, list[str]]) -> str | None:
    """One sentence in place of Hydra's `message` on an override; None where that is about something else.

    `given`: the command's overrides; `known`: all keys; `choices`: the files of each group of conf/.
    """
    if missing := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", message):
        group, choice = missing[1], missing[2]
        there = choices.get(group, [])
        plus = "+" if group == "exp" else ""
        near = meant(choice, there)
        told = question([f"{plus}{group}={near}"] if near else []) or f"choose from {', '.join(there)}"
        return f"{plus}{group}={choice}: there is no conf/{group}/{choice}.yaml; {told}"
    if bare := re.search(r"Error parsing override '([^'=]+)'\s*missing EQUAL", message):
        return f"{bare[1]}: give its value, too: {bare[1]}=VALUE"
    found = re.search(r"Could not (override|append to config|delete from config|delete)\b[^']*'([^']+)'", message)
    if not found:
        return None
    key = found[2]
    said = next((o for o in given if o.lstrip("+~").split("=")[0] == key), key)
    if found[1].startswith("append"):
        return f"{said}: the key is there already, write it without the +"
    if key in choices:
        return f"{said}: it is no part of the defaults, write +{said.lstrip('+~')}"
    group, at, place = key.partition("@")
    keys_meant = meant_keys(place or group, [*known, *([] if at else choices)])
    told = (
        question([f"{group}{at}{meant_key}" if at else meant_key for meant_key in keys_meant])
        or "see --help for those that there are"
    )
    return f"{said}: there is no such key; {told}"


def _alike(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio()
