"""Who is let in: a place in the queue for each conversation that has no result yet."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.serving.problems import Unavailable

LONGEST_PAUSE_SECONDS = 60


class Queue:
    """Places for at most `limit` conversations. `waiting`: those that were let in and have no result yet."""

    def __init__(self, limit: int) -> None:
        self.limit, self.waiting = limit, 0
        self._busy_since, self._done = 0.0, 0  # since the queue was last empty: how fast the judge is

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Hold `count` places. Raises `Unavailable` where there are too few."""
        if self.waiting + count > self.limit:
            raise Unavailable(
                f"{self.waiting} conversations wait and {count} more would exceed the limit of {self.limit}",
                self._pause(),
            )
        if not self.waiting:
            self._busy_since, self._done = time.monotonic(), 0
        self.waiting += count
        try:
            yield
            self._done += count
        finally:
            self.waiting -= count

    def _pause(self) -> int:
        """Seconds until half of what waits is done, at the present speed."""
        seconds = (time.monotonic() - self._busy_since) / max(self._done, 1) * self.waiting / 2
        return min(LONGEST_PAUSE_SECONDS, max(1, math.ceil(seconds)))
