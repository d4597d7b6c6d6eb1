"""Axes and curves for charts that are drawn in per cent of their box, so that they stretch with a page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from eval.cascades import Cascade
from eval.costs import Costs
from eval.judges.candidates import STUDENT, TEACHER
from students.export.formats import FORMATS

MARGIN = 0.06
POINTS = 200  # of a curve: more than that is less than a pixel apart on a phone
APART = 9.0  # of the height, per cent: between the names of two judges
NAMES = 0.5  # of the points' range: the room at their right, where names stand
DRAWN = 6  # cascades, at most
MARKED = 30  # points are marked, and tell their value, where there are no more


@dataclass(frozen=True)
class Axis:
    """A scale with round ticks; positions are per cent of its length."""

    low: float
    high: float
    ticks: list[tuple[float, str]]

    @classmethod
    def over(cls, values: Iterable[float | None], margin: float = MARGIN) -> "Axis":
        """The axis of all `values` but None, and a `margin` (share of their range) on both sides.

        About five ticks fit, at multiples of 1, 2, 2.5 or 5 times a power of ten.
        """
        known = [value for value in values if value is not None] or [0.0, 1.0]
        low, high = min(known), max(known)
        span = (high - low) or abs(high) or 1.0
        low, high = (low, high) if high > low else (low - span / 2, high + span / 2)
        low, high = low - margin * span, high + margin * span
        power = 10.0 ** math.floor(math.log10(span / 4))
        multiple = min((1, 2, 2.5, 5, 10), key=lambda m: abs(math.log(m * power * 4 / span)))
        step = multiple * power
        decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (multiple == 2.5))
        places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        return cls(low, high, [(i * step, f"{i * step:,.{decimals}f}") for i in places])

    def at(self, value: float) -> float:
        """Where `value` lies, in per cent."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class Curve:
    """One run's values by step. `rows` are those of its history, empty where points are means of several."""

    judge: str
    points: list[tuple[float, float]]
    rows: list[int]


@dataclass(frozen=True)
class Plot:
    """The same column of several runs on common axes."""

    column: str
    x: Axis
    y: Axis
    curves: list[Curve]


def training_plots(histories: Mapping[str, pl.DataFrame], columns: Iterable[str]) -> list[Plot]:
    """One plot for each of `columns` that any of the runs has a finite value of.

    `histories`, by judge, have `step` and these columns, with nulls. A plot has an axis of its own: a loss that holds
    the teacher's part, too, can be compared with another in its course alone.
    """
    steps = [0.0, *(float(history["step"].cast(pl.Float64).max() or 1.0) for history in histories.values())]  # type: ignore[arg-type]
    plots = []
    for column in columns:
        curves = [curve for judge, history in histories.items() if (curve := _curve(judge, history, column)).points]
        if curves:
            heights = Axis.over(y for curve in curves for _, y in curve.points)
            plots.append(Plot(column, Axis.over(steps, 0), heights, curves))
    return plots


def _curve(judge: str, history: pl.DataFrame, column: str) -> Curve:
    known = history.with_row_index("row").select("step", pl.col(column), "row").drop_nulls()
    known = known.filter(pl.col(column).is_finite())
    if len(known) > MARKED:
        stretch = pl.int_range(pl.len()) * POINTS // max(len(known), POINTS)
        known = known.group_by(stretch.alias("stretch"), maintain_order=True).mean().drop("stretch")
    rows = known["row"].cast(pl.Int64).to_list() if len(known) <= MARKED else []
    return Curve(judge, list(known.select(pl.col("step").cast(pl.Float64), column).rows()), rows)


@dataclass(frozen=True)
class CostLine:
    """A judge's ways to be asked as points of (cost, log loss); `rows` are their places among its costs.

    `named_at`: where its name stands beside the first point, in per cent of the height.
    """

    judge: str
    points: list[tuple[float, float]]
    rows: list[int]
    named_at: float = 0.0


@dataclass(frozen=True)
class CostChart:
    """Log loss against a `field` of costs, named on the axis `across`."""

    field: str
    across: str
    x: Axis
    y: Axis
    lines: list[CostLine]


def cost_charts(costs: Costs | None) -> list[CostChart]:
    """Log loss against tokens and against hours, in the middle of their range, of judges that have them."""
    charts = []
    for field, across in (("tokens", "tokens a conversation"), ("hours", "hours of one T4")):
        lines = []
        for judge, ways in (costs.judges if costs else {}).items():
            known = [(i, way) for i, way in enumerate(ways) if getattr(way, field) is not None]
            points = [(float(np.mean(getattr(way, field))), way.log_loss) for _, way in known]
            lines += [CostLine(judge, points, [i for i, _ in known])] if known else []
        if lines:
            across_of, up_of = ([point[i] for line in lines for point in line.points] for i in (0, 1))
            room = NAMES * (max(across_of) - min(across_of))
            x, y = Axis.over([*across_of, max(across_of) + room]), Axis.over(up_of)
            charts.append(CostChart(field, across, x, y, named_apart(lines, y)))
    return charts


def named_apart(lines: Iterable[CostLine], y: Axis) -> list[CostLine]:
    """The lines from low to high, their names at least `APART` from each other."""
    placed: list[CostLine] = []
    for line in sorted(lines, key=lambda line: line.points[0][1]):
        lowest = placed[-1].named_at + APART if placed else 0.0
        placed.append(replace(line, named_at=max(lowest, y.at(line.points[0][1]))))
    return placed


@dataclass(frozen=True)
class CascadeChart:
    """Log loss against cost of a pair of judges, which stands `at` its place among the cascades, and of the same
    budgets spent by chance and by an oracle."""

    at: int
    cascade: Cascade
    curve: list[tuple[float, float]]
    chance: list[tuple[float, float]]
    oracle: list[tuple[float, float]]
    x: Axis
    y: Axis


def cascade_charts(cascades: Sequence[Cascade], costs: Costs | None) -> list[CascadeChart]:
    """The pairs that are worth a look: a student and its teacher, an export and its student, a pointwise judge and a
    pairwise one."""
    charts: list[CascadeChart] = []
    for at, cascade in enumerate(cascades):
        if costs is None or len(charts) == DRAWN or not worth_a_look(cascade, costs):
            continue
        points = cascade.points
        least, most = points[0].cost, points[-1].cost
        budgets = [least + point.share * (most - least) for point in points]
        curve = [(point.cost, point.log_loss) for point in points]
        chance = [(budget, point.random) for budget, point in zip(budgets, points, strict=True)]
        oracle = [(budget, point.oracle) for budget, point in zip(budgets, points, strict=True)]
        heights = Axis.over(height for _, height in (*curve, *chance, *oracle))
        charts.append(CascadeChart(at, cascade, curve, chance, oracle, Axis.over(budgets), heights))
    return charts


def worth_a_look(cascade: Cascade, costs: Costs) -> bool:
    """Whether anybody would put these two in a row."""
    pair = {cascade.small, cascade.large}
    exports = {f"{STUDENT}_{name}" for name in FORMATS}
    if STUDENT in pair:
        (other,) = pair - {STUDENT}
        if other in exports or other == TEACHER or other.startswith(f"{TEACHER}_"):
            return True
    pointwise = [costs.judges[name][0].way == "each response" for name in pair]
    return pointwise[0] != pointwise[1]
