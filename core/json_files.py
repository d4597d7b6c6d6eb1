"""JSON files that are never half written, and whose damage is reported with the file's name."""

import json
import os
from pathlib import Path
from typing import Any

from core.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one, never half of one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file. Raises `UserError` with `remedy` where it is empty or damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # json's and the decoder's
        state = "is empty" if path.stat().st_size == 0 else f"is damaged, it is not JSON ({error})"
        raise UserError(f"{path} {state}: {remedy}") from error
