"""Runs steps one after another and keeps what came of them.

What has passed is not run again while code, device and versions are the same: rerun the same command to resume.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.json_files import write_json
from gpu_check.machine import Machine
from gpu_check.processes import Answer, Processes, Status
from gpu_check.results import Figures, Skip, need

PATIENCE = 10  # times a step's limit, in a dry run: a busy CPU is no fault


@dataclass(frozen=True)
class Step:
    """A check: `function` (module:name) gets a scratch folder, whether the run is dry, and `arguments`.

    It returns its figures, or raises: `Skip`, `Failed`, anything. `needs`: packages; `gpu_only`: why no CPU can run it.
    """

    name: str
    function: str
    limit_s: int
    needs: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    gpu_only: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a step, on the machine of this `key`."""

    status: Status
    seconds: float
    reason: str
    figures: Figures
    key: str


class Record:
    """What came of the steps so far, in a JSON file that is complete at any time."""

    def __init__(self, path: Path, machine: Machine):
        self.path, self.machine = path, machine
        kept = json.loads(path.read_text())["steps"] if path.exists() else {}
        self.outcomes = {name: Outcome(**outcome) for name, outcome in kept.items()}

    def passed(self, name: str) -> bool:
        """Whether it has passed on this machine with this code."""
        outcome = self.outcomes.get(name)
        return outcome is not None and (outcome.status, outcome.key) == ("PASS", self.machine.key)

    def keep(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        steps = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        write_json(self.path, {"machine": asdict(self.machine), "steps": steps})


def run_all(steps: Sequence[Step], record: Record, processes: Processes, dry: bool, until: float, again: bool) -> None:
    """Run all `steps` that have not passed here yet, or all; none after `until` on the monotonic clock."""
    for step in steps:
        if record.passed(step.name) and not again:
            continue
        began = time.monotonic()
        answer = attempt(step, processes, dry, until - began, record.path.with_suffix("") / f"{step.name}.log")
        seconds = round(time.monotonic() - began, 1)
        outcome = Outcome(answer.status, seconds, answer.reason, answer.figures or {}, record.machine.key)
        record.keep(step.name, outcome)
        print(f"{outcome.status}  {step.name}  {seconds:.0f} s  {detail(outcome)}", flush=True)


def attempt(step: Step, processes: Processes, dry: bool, left_s: float, log: Path) -> Answer:
    """Run a step where it can run, with its own limit or what is left of the time for all."""
    out_of_time = Answer("SKIP", "the time for all steps is over: rerun the same command to resume")
    try:
        if dry and step.gpu_only:
            raise Skip(step.gpu_only)
        need(*step.needs)
    except Skip as reason:
        return Answer("SKIP", str(reason))
    if left_s <= 0:
        return out_of_time
    log.parent.mkdir(parents=True, exist_ok=True)
    limit_s = step.limit_s * (PATIENCE if dry else 1)
    answer = processes.run(step.function, {"dry": dry, **step.arguments}, min(limit_s, left_s), log)
    return out_of_time if answer.late and left_s < limit_s else answer


def table(steps: Sequence[Step], record: Record) -> str:
    """The outcomes of `steps` in Markdown."""
    rows = ["| step | result | s | |", "|---|---|---|---|"]
    for step in steps:
        outcome = record.outcomes[step.name]
        rows.append(f"| {step.name} | {outcome.status} | {outcome.seconds:.0f} | {detail(outcome)} |")
    return "\n".join(rows)


def detail(outcome: Outcome) -> str:
    """The reason, or the figures, on one line."""
    figures = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in outcome.figures.items())
    return (outcome.reason or ", ".join(figures)).replace("|", "/").replace("\n", " ")
