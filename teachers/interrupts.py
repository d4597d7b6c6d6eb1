"""Ctrl-C as a request: what is under way is finished and written before the command ends."""

import signal
import threading
from types import FrameType
from typing import Self

from core import screen

STOPPED = 130  # the exit code of a command that a Ctrl-C ended


class Interrupt:
    """Within it, the first Ctrl-C (or SIGTERM, as rented machines send it) sets `asked`; the second is one as usual."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in self._before:
                signal.signal(number, self._ask)
        else:
            self._before = {}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(
            "finishing what the engine is working on, then stopping; press Ctrl-C again to stop at once",
            file=screen.err(),
        )

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
