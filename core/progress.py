"""Progress without a bar: when the next line is due, and how durations are written."""

import time

FIRST_SECONDS, SECONDS = 15, 60  # until the first line, and between two


class Notes:
    """When a line of progress is due: soon after the beginning, to tell how long it will take, then once a minute."""

    def __init__(self) -> None:
        self._next = time.monotonic() + FIRST_SECONDS

    def are_due(self) -> bool:
        """Whether it is time for a line; asking so counts as telling it."""
        now = time.monotonic()
        if now <= self._next:
            return False
        self._next = now + SECONDS
        return True


def duration(seconds: float) -> str:
    """`3 h 05 min`, or `42 s` for less than two minutes."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
