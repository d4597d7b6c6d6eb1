"""How long the second opinions of a prediction may take, and how long they do, also after a kill."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from core.json_files import read_json, write_json


@dataclass(frozen=True)
class Speed:
    """How fast a judge is: the seconds that its engine takes to open, and those for a token; 0: nothing is known."""

    opening: float = 0.0
    per_token: float = 0.0

    def of_larger(self, times: float) -> Self:
        """A guess at a judge with so many times the weights: what an engine does to open hardly depends on them."""
        return type(self)(self.opening, self.per_token * times)


class Budget:
    """How long second opinions may take, and how long they do, by the tokens of those that stand before them.

    What is measured is noted in a file, for a run that is resumed and measures nothing before it has to choose.
    """

    def __init__(self, end: float | None, guess: Speed, note: Path | None = None) -> None:
        """`end`: when no more are begun, None for never. `note`: the file for what is measured, None for no file."""
        self.end, self._note = end, note
        self._guess, self._opening = guess, guess.opening
        self._seconds = self._tokens = 0.0

    @property
    def speed(self) -> Speed:
        """As measured or else guessed."""
        return Speed(self._opening, self._seconds / self._tokens if self._tokens else self._guess.per_token)

    def opened(self, began: float) -> None:
        """An engine was opened since `began`."""
        self._opening = time.time() - began
        self._write()

    def spend(self, began: float, tokens: float) -> None:
        """So many tokens were read since `began`."""
        self._seconds, self._tokens = self._seconds + time.time() - began, self._tokens + tokens
        self._write()

    def lasts_for(self, tokens: float, opening: bool = False) -> bool:
        """Whether so many tokens would be read in time, after the `opening` of an engine where that is to come."""
        speed = self.speed
        seconds = speed.per_token * tokens + speed.opening * opening
        return self.end is None or time.time() + seconds <= self.end

    def _write(self) -> None:
        if self._note is not None:
            write_json(self._note, asdict(self.speed))


def until(deadline: float, judges: int) -> float:
    """When the first of so many `judges` has to end: each has an equal part of the time that is left."""
    now = time.time()
    return deadline if deadline < now else now + (deadline - now) / judges


def speed_note(parts: Path, number: int) -> Path:
    """Where process `number` notes how fast the judge is whose scores lie in `parts`."""
    return parts / f"speed-{number}.json"


def noted_speed(parts: Path) -> Speed | None:
    """That of the slowest process which judged into `parts` before; None where none did."""
    found = [Speed(**read_json(note, "remove it, and rerun the same command")) for note in parts.glob("speed-*.json")]
    return max(found, key=lambda speed: speed.per_token, default=None)


def speed_notes(folders: Iterable[Path]) -> list[Path]:
    """All that was noted of speeds, half-written notes of a kill among them."""
    return [note for folder in folders for form in ("", ".") for note in folder.glob(f"{form}speed-*.json*")]
