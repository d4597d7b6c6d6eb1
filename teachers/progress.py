"""How far a scoring run is: rows, rates, time left and cost."""

import logging

from tqdm import tqdm

from core import screen
from core.progress import Notes, duration

log = logging.getLogger(__name__)
BAR = "{l_bar}{bar}| {desc}"


class ScoringProgress:
    """Rows, rates, time left and cost of a whole scoring run, as a bar or, where nobody watches, as a line a minute."""

    def __init__(self, total: int, price_per_hour: float | None) -> None:
        """`total`: rows to score, over all judges. Only seconds within `running` count, not the start of engines."""
        self.total, self.price = total, price_per_hour
        self.rows = self.tokens = self.cached = 0
        self.seconds = 0.0
        self.spent: float | None = None  # money, where each row costs some
        self._bar = tqdm(total=total, unit=" rows", dynamic_ncols=True, disable=None, file=screen.err(), bar_format=BAR)
        self._notes: Notes | None = None  # from the first row on: the first engine takes its time to start

    def running(self, seconds: float) -> None:
        """Add the time that a scorer was at work."""
        self.seconds += seconds

    def advance(self, tokens: int, cached: int, elapsed: float) -> None:
        """One more row is scored; `cached` prompt tokens of this scorer came from its cache until now."""
        self.rows, self.tokens = self.rows + 1, self.tokens + tokens
        if self._bar.disable:
            self._notes = self._notes or Notes()
            if self._notes.are_due():
                log.info("%s", self.describe(self.seconds + elapsed, cached))
        else:
            self._bar.set_description_str(self.describe(self.seconds + elapsed, cached), refresh=False)
            self._bar.update()

    def describe(self, seconds: float, cached: int = 0) -> str:
        """One line: `1,200 of 9,000 rows, 41.2 rows/s, 30,112 tokens/s, 38% cached, 0 h 3 min left, about 2.41`."""
        seconds = max(seconds, 1e-9)
        line = f"{self.rows:,} of {self.total:,} rows, {self.rows / seconds:.1f} rows/s, "
        line += f"{self.tokens / seconds:,.0f} tokens/s, {(self.cached + cached) / max(1, self.tokens):.0%} cached"
        if 0 < self.rows < self.total:
            left = (self.total - self.rows) * seconds / self.rows
            line += f", {duration(left)} left" + self.cost(left, self.total - self.rows)
        return line if self.spent is None else f"{line}, {self.spent:,.4g} spent"

    def cost(self, seconds: float, rows: int) -> str:
        """`, about 2.41 in cost` of so many seconds at the given price, or of rows as dear as those so far."""
        if self.spent is not None:
            return f", about {self.spent / max(1, self.rows) * rows:,.2f} in cost"
        return "" if self.price is None else f", about {seconds / 3600 * self.price:,.2f} in cost"

    def close(self) -> None:
        self._bar.close()
