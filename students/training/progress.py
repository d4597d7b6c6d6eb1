"""How far a training is: steps, loss, rate and time left."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from core import screen
from core.progress import Notes, duration

log = logging.getLogger(__name__)


class TrainingProgress:
    """A bar or, where nobody watches, a line a minute. Ranks other than the first show nothing."""

    def __init__(self, run: str, total: int, done: int, rank: int) -> None:
        """`done` of `total` steps of a `run` were taken before."""
        self.run, self.total, self.rank = run, total, rank
        silent = None if rank == 0 else True  # None: only on a terminal
        self._bar = tqdm(
            total=total, initial=done, unit="step", disable=silent, file=screen.err(), dynamic_ncols=True, leave=False
        )
        self._began, self._steps = time.monotonic(), 0
        self._notes = Notes()

    def advance(self, record: Mapping[str, Any]) -> None:
        """One more step, and its row of the history."""
        self._steps += 1
        told = f"loss {record['loss']:.4f}, {record['tokens'] / record['seconds']:.0f} tokens/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update()
        elif self.rank == 0 and record["step"] < self.total and self._notes.are_due():
            left = (time.monotonic() - self._began) / self._steps * (self.total - record["step"])
            log.info("%s: step %d of %d, %s, %s left", self.run, record["step"], self.total, told, duration(left))

    def close(self) -> None:
        self._bar.close()
