"""The files that a prediction writes, and what must not be in their place."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from core.artefacts.building import STARTED
from core.data.collecting import REJECTED
from core.data.layouts.votes import WINNERS
from core.errors import UserError
from deploy.predicting.engine_notes import HEADER, note_of

PROBABILITIES = ("id", *WINNERS[:2])  # the columns of probabilities beside a submission that names the winners
ONE_ORDER = ("id", "margin")  # the columns of the list of conversations that were judged in one order only
SETS = ("id", "set")  # the columns of the list of prediction sets
JUDGES = ("id", "judge")  # the columns of the list of who judged which row
HEADER_BYTES = 100


def parts_folder(output: Path) -> Path:
    """What is judged until now: `<output>.parts`."""
    return Path(f"{output}.parts")


def store_of(parts: Path, turn: int) -> Path:
    """What the judge that is asked at a `turn` said: the first has the folder itself."""
    return parts / f"judge-{turn + 1}" if turn else parts


def unreadable_list(output: Path) -> Path:
    """The rows that could not be read."""
    return output.with_name(f"{output.stem}.unreadable.csv")


def one_order_list(output: Path) -> Path:
    """The conversations that were judged in one order only."""
    return output.with_name(f"{output.stem}.one_order.csv")


def probability_list(output: Path) -> Path:
    """The probabilities, beside a submission of a judge without ties, which names the winners."""
    return output.with_name(f"{output.stem}.probabilities.csv")


def set_list(output: Path) -> Path:
    """The prediction sets, where the export has thresholds."""
    return output.with_name(f"{output.stem}.sets.csv")


def judge_list(output: Path) -> Path:
    """Who judged which row, where several judges did."""
    return output.with_name(f"{output.stem}.judges.csv")


def checked_output(output: str | None, source: str | None, overwrite: bool) -> Path:
    """The submission to write. Raises `UserError` for names that it cannot have, before anything is read.

    `source` is the input, which must not be overwritten; other files only where this command wrote them.
    """
    if output is None:
        raise UserError("output=null: name the file to write, as in output=submission.csv")
    path = Path(output)
    if path.suffix.lower() != ".csv":
        raise UserError(f"output={path}: a submission is a CSV file, so let its name end in .csv")
    if path.is_dir():
        raise UserError(f"output={path} is a folder: name a file, as in output={path / 'submission.csv'}")
    for each, header in written(path).items():
        if source is not None and each.exists() and Path(source).exists() and each.samefile(source):
            raise UserError(f"input={source} is the file {each}, which would be written: choose another output")
        if header is not None and each.exists() and first_line(each) != header:
            raise UserError(f"{each} is there, and this command did not write it: move it, or choose another output")
    if path.exists() and not overwrite:
        raise UserError(f"output={path} is there already: choose another, or replace it with overwrite=true")
    return path


def written(output: Path) -> dict[Path, str | None]:
    """The files that a prediction writes: the submission and the lists beside it, each with the header that is its own.

    None for the submission: that it may be replaced is said by `overwrite`.
    """
    return {
        output: None,
        unreadable_list(output): ",".join(REJECTED),
        one_order_list(output): ",".join(ONE_ORDER),
        note_of(output): HEADER,
        probability_list(output): ",".join(PROBABILITIES),
        set_list(output): ",".join(SETS),
        judge_list(output): ",".join(JUDGES),
    }


def discard_parts(parts: Path, files: Iterable[Path]) -> None:
    """Remove `files`, which hold what is judged, and their folders where nobody has put anything else there."""
    for file in files:
        file.unlink()
    shutil.rmtree(parts / STARTED.parent)
    for folder in (*parts.glob("judge-*"), parts):
        with suppress(OSError):
            folder.rmdir()


def first_line(path: Path) -> str:
    """The first line of a file of any kind, as far as it can tell one of ours from another."""
    with path.open("rb") as file:
        return file.readline(HEADER_BYTES).decode(errors="replace").rstrip("\r\n")
