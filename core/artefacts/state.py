"""How an artefact stands, told without writing, locking or reading it whole: what `distill.status` shows.

`done` is said only where its stage, run again, would find nothing to do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.artefacts.building import Artefact, begun_file
from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import Manifest, changed_parents, changes_at_a_glance, read_manifest
from core.errors import UserError
from core.locks import holder, lock_of

StateName = Literal["done", "failed", "stale", "running", "interrupted", "missing"]
NAMED = 3  # how many differences a reason names
SHOWN = 40  # characters of a value


@dataclass(frozen=True)
class State:
    """How an artefact stands, and why.

    `running`: `reason` says who writes it, and `since` since when (Unix time). `failed`: it is there, but failed its
    checks. `manifest`: of one that is there, stale or not. `unsure`: called stale because something cannot be compared
    here, which its stage may find unchanged.
    """

    name: StateName
    reason: str = ""
    since: float | None = None
    manifest: Manifest | None = None
    unsure: bool = False


def state_of(artefact: Artefact, locks: Sequence[Path] = ()) -> State:
    """How the artefact of a stage stands; `locks`: of those who write parts of it, beside that of the whole folder."""
    return _state(artefact.folder, artefact.stage, locks, lambda found: _differences(artefact, found), artefact)


def state_in(folder: Path, stage: str, reason: Callable[[Manifest], str]) -> State:
    """How an artefact stands of which nobody says what it should be; `reason`: why its manifest does not suit."""
    return _state(folder, stage, (), reason, None)


def changed_since(found: Manifest, root: Path) -> str:
    """Which parents of an artefact are others now or gone; "" where none is."""
    gone = [f"{name} is gone" for name in found.parents if not (root / name / MANIFEST).exists()]
    changed = [f"{name} has changed" for name in changed_parents(found, root, verify=False)]
    return "; ".join([*gone, *changed][:NAMED])


def _state(
    folder: Path, stage: str, locks: Sequence[Path], reason: Callable[[Manifest], str], artefact: Artefact | None
) -> State:
    # Somebody writes it.
    holders = [each for path in (lock_of(folder), *locks) if (each := holder(path))]
    if running := [each for each in holders if each.alive]:
        return State("running", running[0].who, running[0].since)

    # It is not finished.
    if not (folder / MANIFEST).exists():
        begun = begun_file(folder).exists() or (folder.is_dir() and any(folder.iterdir()))
        if not begun and not holders:
            return State("missing")
        problem = _problem(lambda: listed(artefact.differing_start(verify=False) if artefact else []))
        if problem:
            return State("stale", f"started differently: {problem}")
        return State("interrupted", f"{holders[0].who} has ended" if holders else "")

    # It is finished: is it what it should be?
    try:
        found = read_manifest(folder, stage, verify=False)
    except UserError as error:
        return State("stale", str(error))
    differing = _problem(lambda: reason(found))
    changes, sure = changes_at_a_glance(folder, found)
    changed = [f"{change}, since it was finished" for change in changes[:NAMED]]
    problem = "; ".join(changed) if changed and (sure or not differing) else differing
    return State("stale" if problem else "done", problem, manifest=found, unsure=not sure and not differing)


def _problem(find: Callable[[], str]) -> str:
    """What `find` finds, or cannot find because a parent is not there."""
    try:
        return find()
    except UserError as error:
        return str(error)


def _differences(artefact: Artefact, found: Manifest) -> str:
    """In what a finished artefact differs from what is configured; "" where it does not."""
    differing = artefact.differing_parents(found, verify=False)
    parents = [f"{name} {'is new' if there is None else 'has changed'}" for name, there, now in differing if now]
    parents += [f"it was made of {name}, too" for name, _, now in differing if not now]
    settings = artefact.differing_settings(found)
    return "; ".join([*parents[:NAMED], *([listed(settings)] if settings else [])])


def listed(differences: Sequence[tuple[str, Any, Any]]) -> str:
    """`differing_fields` in a line; "" where there are none."""
    shown = [f"{name}: there {_short(there)}, now {_short(now)}" for name, there, now in differences[:NAMED]]
    more = len(differences) - len(shown)
    return ", ".join([*shown, *([f"and {more} more"] if more else [])])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
