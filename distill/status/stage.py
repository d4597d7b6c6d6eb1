"""A row of the table."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import Manifest
from core.artefacts.state import State, state_of
from core.errors import UserError
from distill.status.figures import figure


@dataclass(frozen=True)
class Stage:
    """What lies in `folder`, and how it stands; `figure`: its headline.

    `command` makes it, a module and overrides of its own; none for what is only shown, as a run of other settings.
    `experiment`: whose command it is, None: this one's. `folder` None: nobody can say yet where it will lie.
    """

    name: str
    folder: Path | None
    state: State
    figure: str = ""
    command: Sequence[str] = ()
    experiment: str | None = None

    @property
    def bytes(self) -> int | None:
        """The disk space of its files; None where there are none."""
        if self.folder is None or not self.folder.is_dir():
            return None
        sizes = []
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # it just went: its stage is running
                sizes.append(path.stat().st_size if path.is_file() else 0)
        return sum(sizes)

    @property
    def made(self) -> float | None:
        """When it was finished (Unix time)."""
        if self.state.manifest is None:
            return None
        with suppress(ValueError):
            return datetime.fromisoformat(self.state.manifest.created).timestamp()
        return None


def stage_of(
    name: str,
    folder: Path,
    artefact: Callable[[], Artefact],
    of: Callable[[Path, Manifest], str],
    command: Sequence[str],
    experiment: str | None = None,
) -> Stage:
    """The row of the artefact in a folder; where nobody can say yet what it should be, it says why."""
    try:
        state = state_of(artefact())
    except UserError as error:
        state = State("stale" if (folder / MANIFEST).exists() else "missing", str(error))
    return Stage(name, folder, state, figure(of, folder, state.manifest), command, experiment)
