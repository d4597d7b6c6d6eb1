"""What a submission says where its engine computes something else than was exported (canaries.on_failure=warn)."""

import logging
from pathlib import Path

from core.exported import ExportedJudge
from core.scoring import Scorer
from eval.canaries.checking import check_canaries
from eval.config import CanaryMode

log = logging.getLogger(__name__)
HEADER = "not computed as exported"  # first line of the note beside a submission


def check_engine(judge: ExportedJudge, scorer: Scorer, canaries: CanaryMode, parts: Path, number: int) -> None:
    """Check the engine of process `number`; what is wrong with it stays beside what it judges."""
    if problem := check_canaries(judge.folder, judge.renderer, scorer, canaries):
        (parts / f".canaries-{number}").write_text(problem)


def tell_marked(parts: Path, output: Path) -> None:
    """Log what was wrong with engines that judged, whenever that was, and write it beside the submission."""
    path, notes = note_of(output), notes_in(parts)
    path.unlink(missing_ok=True)  # of an earlier submission
    if problems := sorted({note.read_text() for note in notes}):
        path.write_text("\n".join([HEADER, *problems]) + "\n")
        log.warning("%s was %s (%s): %s", output, HEADER, path, "; ".join(problems))


def notes_in(parts: Path) -> list[Path]:
    """What processes noted of their engines, in the folders of what is judged."""
    return [note for folder in (parts, *parts.glob("judge-*")) for note in folder.glob(".canaries-*")]


def note_of(output: Path) -> Path:
    """The file beside a submission that says what was wrong with its engines."""
    return output.with_name(f"{output.stem}.canaries.txt")
