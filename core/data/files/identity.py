"""What tells the content of one file from that of another."""

import hashlib
from pathlib import Path
from typing import Any


def content_hash(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of the file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
