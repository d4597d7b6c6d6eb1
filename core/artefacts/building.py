"""An artefact under construction: built once, by one process, and described by the manifest that is written last.

A stage that finds its own finished artefact has nothing to do. One that finds an artefact made differently, or a parent
that has changed, refuses and says which field differs.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.artefacts.contents import MANIFEST, SCRATCH, content_of, file_digests
from core.artefacts.identity import differing_fields, list_differences
from core.artefacts.manifest import Manifest, parent_contents, read_manifest
from core.artefacts.versions import installed_versions
from core.errors import UserError
from core.json_files import read_json, write_json
from core.locks import alone
from core.renamed import with_new_names

STARTED = Path(SCRATCH[0], "started.json")


@dataclass(frozen=True)
class Artefact:
    """What `folder` shall hold: the work of `stage`, made from `identity` and `parents`.

    `identity`: the part of the configuration that decides the content, JSON-able. `parents`: folders of finished
    artefacts, whose names in the manifest are relative to `root`.
    """

    folder: Path
    stage: str
    identity: Mapping[str, Any]
    parents: Sequence[Path]
    root: Path

    def is_finished(self) -> bool:
        """Whether the folder already holds it. Raises `UserError` naming the fields that differ from what it holds."""
        if not (self.folder / MANIFEST).exists():
            return False
        found = read_manifest(self.folder, self.stage)
        if differences := self.differing_settings(found) + self.differing_parents(found):
            raise UserError(
                f"{self.folder} is finished, but was made differently:{list_differences(differences)}"
                "\n  keep it and choose another name=..., or replace it with overwrite=true"
            )
        return True

    def differing_settings(self, found: Manifest) -> list[tuple[str, Any, Any]]:
        """`differing_fields` of the configuration in a manifest and this artefact's own."""
        return differing_fields(found.config, json.loads(json.dumps(self.identity)))

    def differing_parents(self, found: Manifest, verify: bool = True) -> list[tuple[str, Any, Any]]:
        """`differing_fields` of the parents in a manifest, by their contents, and this artefact's own as they are now.

        Raises `UserError` for a parent that is not there, and unless `verify` is off for one whose files have changed.
        """
        return differing_fields(found.parents, parent_contents(self.parents, self.root, verify))

    @contextmanager
    def building(self, *, inputs: Iterable[Path] = (), overwrite: bool = False, wait: bool = False) -> Iterator[bool]:
        """Whether it is still to be built. If so, the block builds and `finish`es it, while other processes keep out.

        A process that comes second waits where runs share the artefact (`wait`); otherwise it is refused. `inputs`:
        files that are read, which `overwrite` must not remove. Raises `UserError` as `is_finished` does, and where the
        folder holds files that no stage wrote.
        """
        if not overwrite and self.is_finished():
            yield False
            return
        begun = begun_file(self.folder)
        with alone(self.folder, wait):
            if overwrite and (self.folder / MANIFEST).exists():
                self._check_replaceable(inputs)
                begun.touch()
                empty(self.folder)
            elif self.is_finished():
                yield False
                return
            if not begun.exists():
                refuse_foreign(self.folder)
                begun.touch()
            yield True
            begun.unlink(missing_ok=True)

    def finish(
        self,
        *,
        rows: Mapping[str, int] | None = None,
        prompt: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Hash the files in the folder and write the manifest: from now on the artefact is finished."""
        digests = file_digests(self.folder)
        manifest = Manifest(
            stage=self.stage,
            config=dict(self.identity),
            parents=parent_contents(self.parents, self.root),
            content=content_of(digests),
            files=digests,
            rows=dict(rows or {}),
            prompt=dict(prompt or {}),
            versions=installed_versions(),
            command=" ".join(sys.orig_argv[1:]),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            extra=dict(extra or {}),
        )
        write_json(self.folder / MANIFEST, asdict(manifest))
        return manifest

    @contextmanager
    def reopened(self) -> Iterator[None]:
        """Around changes to a finished artefact that end with `finish`: a kill in between leaves one to be built anew.

        Whoever calls this holds the folder's lock (`alone`).
        """
        begun = begun_file(self.folder)
        begun.touch()
        (self.folder / MANIFEST).unlink()
        yield
        begun.unlink()

    def claim(self, overwrite: bool = False) -> None:
        """Start an artefact that takes long, or resume it: the folder may hold checkpoints of this very run only.

        Raises `UserError` naming the fields that differ where a run with another configuration was started here, and
        where the folder holds files that no run wrote; with `overwrite` all that a run left there is removed.
        """
        begun = begun_file(self.folder)
        begun.parent.mkdir(parents=True, exist_ok=True)
        if not any(sign.exists() for sign in (begun, self.folder / STARTED, self.folder / MANIFEST)):
            refuse_foreign(self.folder)
        elif overwrite:
            begun.touch()
            empty(self.folder)
        elif (self.folder / MANIFEST).exists():
            raise UserError(f"{self.folder} was finished by another process: rerun the same command, which reads it")
        if differences := self.differing_start():
            raise UserError(
                f"{self.folder} holds checkpoints of a run that was started differently:{list_differences(differences)}"
                "\n  resume it with its own settings, or start over with overwrite=true"
            )
        begun.touch()
        path = self.folder / STARTED
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self._start())
        begun.unlink()

    def differing_start(self, verify: bool = True) -> list[tuple[str, Any, Any]]:
        """`differing_fields` of the run that was started in the folder and this one; none where none was."""
        path = self.folder / STARTED
        if not path.exists():
            return []
        return differing_fields(with_new_names(read_json(path, "start over with overwrite=true")), self._start(verify))

    def _start(self, verify: bool = True) -> dict[str, Any]:
        start = {**self.identity, "parents": parent_contents(self.parents, self.root, verify)}
        return dict(json.loads(json.dumps(start)))

    def _check_replaceable(self, inputs: Iterable[Path]) -> None:
        """Raise `UserError` where the folder is another stage's, or holds a parent or one of the `inputs`."""
        found = self.stage
        with suppress(ValueError, KeyError, TypeError):  # a damaged manifest is a reason to replace the artefact
            found = json.loads((self.folder / MANIFEST).read_text())["stage"]
        if found != self.stage:
            raise UserError(
                f"{self.folder} was written by stage {found!r}, not by {self.stage!r}: move it, or choose another name"
            )
        for path in [*self.parents, *inputs]:
            if path.resolve().is_relative_to(self.folder.resolve()):
                raise UserError(
                    f"{path} is read, and overwrite=true would remove it with {self.folder}: move it elsewhere"
                )


def begun_file(folder: Path) -> Path:
    """A file beside `folder`, there while the folder itself does not tell that it is ours: a kill may leave it so."""
    return folder.with_name(f".{folder.name}.started")


def refuse_foreign(folder: Path) -> None:
    """Raise `UserError` where a folder holds files that no command wrote: they would be in the way, or lost."""
    if folder.is_dir() and (found := sorted(path.name for path in folder.iterdir())):
        raise UserError(
            f"{folder} holds files that this command did not write, such as {found[0]!r}: "
            "move it away, or choose another name"
        )


def empty(folder: Path) -> None:
    """Remove a folder; of one that is a link, as to a larger disk, what it points to is emptied and both stay."""
    (folder / MANIFEST).unlink(missing_ok=True)  # first: half an artefact is not finished
    if not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=not folder.exists())
        return
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
