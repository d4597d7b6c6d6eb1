"""A public data set that we measure on: where its files are, what may be done with them, and what we make of them.

Beside it a model that we train from.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = "python -m proof.sources"

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Source:
    """A row of the table.

    `files`: git's ids of their content at `commit` (what `git hash-object FILE` prints), by path in the GitHub
    `repository`. `shippable`: whether the licence lets a product contain the data; else they serve measurements alone.
    `rows` makes the rows of `output` from a checkout. `digest`: SHA-256 of these rows as CSV, as they were measured on.
    """

    name: str
    about: str
    repository: str
    commit: str
    files: Mapping[str, str]
    licence: str
    shippable: bool
    output: str
    digest: str
    rows: Callable[[Path], Rows]

    @property
    def url(self) -> str:
        return f"https://github.com/{self.repository}"

    @property
    def pattern(self) -> str:
        """All paths as bash reads them: `data/{a.json,b.json}`. They differ in one part alone."""
        parts = [dict.fromkeys(names) for names in zip(*(path.split("/") for path in self.files), strict=True)]
        return "/".join(f"{{{','.join(names)}}}" if len(names) > 1 else next(iter(names)) for names in parts)

    def checkout(self, originals: Path) -> Path:
        """Where a clone of the repository is expected."""
        return originals / self.repository.split("/")[1]

    def commands(self, originals: Path) -> tuple[str, str]:
        """What gets these files, and no others, from the repository."""
        folder = self.checkout(originals)
        return (
            f"git clone --no-checkout --filter=blob:none {self.url} {folder}",
            f"git -C {folder} checkout {self.commit} -- {self.pattern}",
        )

    def path(self, output: Path) -> Path:
        """Where the file that is made of them goes."""
        return output / self.name / self.output

    def problem(self, originals: Path) -> str | None:
        """What is wrong with the files; None where all are there, as they were at the commit."""
        paths = {self.checkout(originals) / path: blob for path, blob in self.files.items()}
        wrong = [f"{path} {state}" for path, blob in paths.items() if (state := problem_of(path, blob))]
        more = f", and {len(wrong) - 1} more files are not as expected" if len(wrong) > 1 else ""
        return wrong[0] + more if wrong else None


@dataclass(frozen=True)
class Base:
    """A model that judges are trained from, with a licence that lets a product contain what is trained from it."""

    about: str
    url: str
    licence: str


def problem_of(path: Path, blob: str) -> str | None:
    """What is wrong with a file of which git's id is to be `blob`; None where nothing is."""
    if not path.is_file():
        return "is missing"
    found = blob_id(path.read_bytes())
    return None if found == blob else f"has changed (git hash-object gives {found}, expected is {blob})"


def blob_id(content: bytes) -> str:
    """The id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
