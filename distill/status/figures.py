"""The headline figure of each stage's artefact, from its manifest and its small JSON files."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.artefacts.manifest import Manifest

OTHER_VERSION = "its figures were written by another version"


def of_data(folder: Path, manifest: Manifest) -> str:
    """How many conversations there are, in how many folds."""
    rows, config = manifest.rows, manifest.config
    test = ", no test split" if not config["test_share"] else ""
    rejected = f", {rows['rejected']:,} rows rejected" if rows["rejected"] else ""
    return f"{rows['kept']:,} conversations, {config['folds']['count']} folds{test}{rejected}"


def of_training(folder: Path, manifest: Manifest) -> str:
    """The validation log loss of the judge that is kept."""
    said = _read(folder / "metrics.json")
    return f"validation log loss {said['validation_log_loss']:.4f}, step {said['best_step']} of {said['steps']}"


def of_export(folder: Path, manifest: Manifest) -> str:
    """What the export lost, and what its checks say."""
    loss = _read(folder / "fidelity.json")["differences"]["log_loss"]
    low, high = loss["ci"]
    checks = "" if manifest.extra["failed"] else ", passed its checks"
    return f"log loss {loss['difference']:+.4f} ({low:+.4f} to {high:+.4f}) by exporting{checks}"


def of_evaluation(folder: Path, manifest: Manifest) -> str:
    """The student's log loss, and what its teacher gains."""
    said = _read(folder / "metrics.json")
    student, gain = said["judges"]["student"], said["gain"]
    low, high = student["log_loss_ci"]
    where = f"{said['rows']:,} {'test' if said['split'] == 'test' else 'left-out'} rows"
    loss = "cross-entropy with its teacher" if _by_teacher(said) else "log loss"
    parts = [f"student's {loss} {student['log_loss']:.4f} ({low:.4f} to {high:.4f}) on {where}"]
    if gain is not None:
        low, high = gain["ci"]
        parts.append(f"gain over votes alone {gain['difference']:.4f} ({low:.4f} to {high:.4f})")
    return "; ".join(parts)


def teachers_log_loss(evaluation: Path) -> str:
    """The teacher's own log loss on votes, where an evaluation has found it."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        said = _read(evaluation / "metrics.json")
        loss = said["judges"]["teacher"]["log_loss"]
        return "" if _by_teacher(said) else f", log loss {loss:.4f}"
    return ""


def _by_teacher(said: dict[str, Any]) -> bool:
    """Whether an evaluation is by the teacher's probabilities: its own log loss is then their entropy."""
    return said.get("truth") == "teacher"


def unanswered(evaluation: Path) -> list[str]:
    """The exports that gave an evaluation no answer."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        return [*(_read(evaluation / "metrics.json").get("unanswered") or {})]
    return []


def training_so_far(folder: Path) -> str:
    """How far a training that is not finished was at its last checkpoint."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        pruned = _read(folder / "metrics.json")
        if pruned.get("pruned"):
            return f"pruned by a search at step {pruned['steps']}"
    with suppress(OSError, ValueError, LookupError, TypeError):
        latest = _read(folder / "checkpoints" / "latest.json")
        return f"step {latest['step']} of {latest['steps']} at its last checkpoint"
    return ""


def figure(of: Callable[[Path, Manifest], str], folder: Path, manifest: Manifest | None) -> str:
    """What `of` says of an artefact; "" where there is none."""
    if manifest is None:
        return ""
    try:
        return of(folder, manifest)
    except FileNotFoundError:  # the state tells which
        return ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return OTHER_VERSION


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
