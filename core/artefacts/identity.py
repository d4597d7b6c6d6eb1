"""What an artefact is made of, as nested JSON values: a short hash to name it by, and the fields that differ."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def identity_hash(identity: Any) -> str:
    """16 hexadecimal digits that tell one JSON-able identity from another, for a folder's name."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def differing_fields(there: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value there, value now) for every leaf in which two nested mappings differ."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*there, *now}):
        old, new, name = there.get(key), now.get(key), f"{at}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differing_fields(old, new, f"{name}.")
        elif old != new:
            found.append((name, old, new))
    return found


def list_differences(differences: list[tuple[str, Any, Any]]) -> str:
    """`differing_fields` as the lines of a message."""
    return "".join(f"\n  - {name}: there {there!r}, now {now!r}" for name, there, now in differences)
