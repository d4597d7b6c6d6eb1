"""A model's folder: what a derived model takes over from its base, and a quick digest of what it holds."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.folders import new_folder

MEGABYTE = 2**20
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)


@contextmanager
def new_model(folder: Path, base: Path, config: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """A `new_folder` for a model made of `base`, for the block to write the weights into.

    It has the base's tokenizer, and as its config.json `config`, or the base's own.
    """
    with new_folder(folder) as partial:
        if config is None:
            shutil.copy(base / "config.json", partial)
        else:
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        copy_tokenizer(base, partial)
        yield partial


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files, which a model folder must hold for the next reader to tokenise as this one did."""
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copy(path, target)


def model_hash(folder: Path) -> str:
    """sha256 of what a model folder holds, as far as that is quick.

    That is its configuration, and each weight file's name, size, first and last megabyte: all of a 70B takes minutes.
    """
    found = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        found.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(MEGABYTE))
            file.seek(max(0, path.stat().st_size - MEGABYTE))
            found.update(file.read(MEGABYTE))
    return found.hexdigest()
