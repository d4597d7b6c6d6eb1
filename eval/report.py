"""What an evaluation shows: a table for the terminal, and `report.html`, one file that needs nothing beside it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.table import Table

from distill.records import LABELS, Conversation
from distill.runs import Manifest
from eval.metrics import log_loss_rows, reliability

LADDER = {
    "prior": "vote frequencies alone",
    "surface": "length and layout of the responses",
    "student_no_teacher": "the student, trained on votes alone",
    "student": "trained on votes and the teacher",
    "student_w8a8": "the student in 8-bit weights and activations",
    "teacher": "the large judge",
    "bayes": "the best that any judge can do here",
}
TEMPLATE = "report.html.j2"
MISTAKES = 10
MARGIN = 0.06
CURVE_POINTS = 200  # more than that is less than a pixel apart on a phone


def table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """What `metrics.summarise` gave for each judge, in the order of `LADDER`, for the terminal."""
    result = Table(caption="log loss in nats with its 95% interval; flips: the verdict changes with the order shown")
    result.add_column("judge")
    for heading in ("log loss", "95% interval", "accuracy", "ECE", "flips"):
        result.add_column(heading, justify="right")
    for judge in _ordered(metrics):
        of = metrics[judge]
        if judge == "bayes":
            result.add_section()
        result.add_row(
            judge,
            f"{of['log_loss']:.4f}",
            "{:.4f} to {:.4f}".format(*of["log_loss_ci"]),
            *(f"{of[name]:.1%}" for name in ("accuracy", "ece", "flip_rate")),
            style="bold" if judge == "student" else None,
        )
    return result


def headline(student: Mapping[str, Any], gain: Mapping[str, Any] | None) -> str:
    """What distillation gained, in one sentence.

    `gain` is `metrics.paired_difference` of the student without a teacher against the student, None where only the
    student was judged.
    """
    if gain is None:
        return "The student's log loss is {:.4f} (95% interval {:.4f} to {:.4f}).".format(
            student["log_loss"], *student["log_loss_ci"]
        )
    change, (low, high) = gain["difference"], gain["ci"]
    if low <= 0 <= high:
        return (
            f"No measurable gain from distillation: log loss falls by {change:.4f}, "
            f"and the 95% interval, {low:.4f} to {high:.4f}, holds zero."
        )
    verb, smallest, largest = ("lowered", low, high) if change > 0 else ("raised", -high, -low)
    return (
        f"Distillation {verb} the student's log loss by {abs(change):.4f} "
        f"(95% interval {smallest:.4f} to {largest:.4f})."
    )


def write_report(
    path: Path,
    *,
    name: str,
    metrics: Mapping[str, Mapping[str, Any]],
    gain: Mapping[str, Any] | None,
    conversations: Sequence[Conversation],
    probabilities: np.ndarray,
    bins: int,
    draws: int,
    history: pl.DataFrame | None,
    lineage: Mapping[str, tuple[str, Manifest]],
) -> None:
    """Write the report of one evaluation to `path`.

    `metrics` holds what `metrics.summarise` gave for each judge, the student among them; `gain` see `headline`.
    `conversations` are the held-out ones, all with votes, and `probabilities` [n, 3] the student's for them in the
    same order: they give the reliability chart and the worst mistakes. `history` is the student's training
    (`step`, `loss`, `validation_log_loss` with nulls), None where it is not at hand. `lineage` names each judge's
    artefact and manifest. Every text is escaped, and a content policy in the page keeps scripts from running.
    """
    votes = np.array([c.votes for c in conversations])
    losses = log_loss_rows(probabilities, votes)
    assert probabilities.shape == votes.shape, f"{probabilities.shape} probabilities for {votes.shape} votes"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"nats": "{:.4f}".format, "share": "{:.1%}".format, "count": "{:,}".format}
    page = environment.get_template(TEMPLATE).render(
        name=name,
        headline=headline(metrics["student"], gain),
        ladder=LADDER,
        labels=LABELS,
        judges=_ordered(metrics),
        metrics=metrics,
        rows=len(conversations),
        groups=len({c.group for c in conversations}),
        draws=draws,
        losses_axis=Axis.over((x for of in metrics.values() for x in (of["log_loss"], *of["log_loss_ci"])), MARGIN),
        reliability=reliability(probabilities, votes, bins).to_dicts(),
        confidence=float(probabilities.max(axis=1).mean()),
        confidence_axis=Axis.over((1 / len(LABELS), 1), 0),
        unit_axis=Axis.over((0, 1), 0),
        curves=[] if history is None else _curves(history),
        mistakes=[(conversations[i], probabilities[i].tolist(), losses[i]) for i in np.argsort(-losses)[:MISTAKES]],
        lineage=lineage,
        rounds=_rounds,
    )
    path.write_text(page, encoding="utf-8")


@dataclass(frozen=True)
class Axis:
    """A scale with round ticks; positions are per cent of its length."""

    low: float
    high: float
    ticks: list[tuple[float, str]]

    @classmethod
    def over(cls, values: Iterable[float], margin: float) -> "Axis":
        """The axis of all `values` and a `margin` (share of their range) on both sides.

        About five ticks fit, at multiples of 1, 2, 2.5 or 5 times a power of ten.
        """
        values = list(values)
        low, high = min(values), max(values)
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
    name: str
    x: Axis
    y: Axis
    points: list[tuple[float, float]]


def _curves(history: pl.DataFrame) -> list[Curve]:
    """Training loss, as means over stretches of steps, and validation log loss, each on a scale of its own.

    They have axes of their own because the training loss holds the teacher's part too: only their courses compare.
    """
    steps = [0.0, float(history["step"].cast(pl.Float64).max() or 1.0)]  # type: ignore[arg-type]
    curves = []
    for column, name in (("loss", "training loss"), ("validation_log_loss", "validation log loss")):
        known = history.select("step", column).drop_nulls().filter(pl.col(column).is_finite())
        if column == "loss":
            stretch = pl.int_range(pl.len()) * CURVE_POINTS // max(len(known), CURVE_POINTS)
            known = known.group_by(stretch.alias("stretch"), maintain_order=True).mean().drop("stretch")
        if len(known):
            curves.append(Curve(name, Axis.over(steps, 0), Axis.over(known[column], MARGIN), known.rows()))
    return curves


def _ordered(metrics: Mapping[str, Any]) -> list[str]:
    unknown = set(metrics) - set(LADDER)
    assert not unknown, f"judges without a place in LADDER: {unknown}"
    return [judge for judge in LADDER if judge in metrics]


def _rounds(conversation: Conversation) -> list[tuple[str, str, str]]:
    """(prompt, response a, response b) of each round; the lists may differ in length where a side stopped early."""
    return list(zip_longest(conversation.prompt, conversation.response_a, conversation.response_b, fillvalue=""))
