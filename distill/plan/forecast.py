"""What more conversations would buy, by the experiment's own finished runs on fewer."""

import json
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from core.artefacts.contents import MANIFEST
from core.artefacts.identity import differing_fields
from core.artefacts.manifest import Manifest, made_from, read_manifest
from core.errors import UserError
from core.json_files import read_json
from core.naming import without
from distill.artefacts import data_folder
from distill.config import Config
from distill.plan.stage import Stage
from distill.training_run import run_folder, run_identity
from eval.intervals import LEVEL
from eval.judges.candidates import STUDENT, TEACHER, teacher_stores
from eval.results import SEEDS
from eval.scaling import FEWEST, Run, forecast, misfit

APART = ("limit", "seed")  # in which small runs may differ
REMEDY = "evaluate again, with overwrite=true"
ERRORS = 3.92  # standard errors from one end of a 95% interval to the other


def forecast_stage(config: Config) -> Stage | None:
    """What the next doublings would buy; None where fewer than three sizes of this student were evaluated."""
    runs = evaluated_runs(config)
    if len({run.conversations for run in runs}) < FEWEST:
        return None
    largest = max(run.conversations for run in runs)
    lines = [
        (f"{run.conversations:,} conversations", f"log loss {run.log_loss:.4f}, measured")
        for run in sorted(runs, key=lambda run: run.conversations)
    ]
    for found in forecast(runs, [2 * largest, 4 * largest]):
        told = f"{found.log_loss:.4f}, {found.gain:.4f} less ({found.gain_ci[0]:.4f} to {found.gain_ci[1]:.4f})"
        lines.append((f"{found.conversations:,}", told))
    if problem := misfit(runs):
        lines.append(("the law", f"does not fit: {problem}"))
    return Stage(f"Log loss by training conversations, {1 - LEVEL:.0%} interval", lines)


def evaluated_runs(config: Config) -> list[Run]:
    """The evaluated students that differ from the configured one in how many conversations they saw, and their seed.

    All were measured by `eval.truth` on the whole test split of the data as they are now. Where students of one size
    differ in their seed alone, and one was evaluated over several (`eval.seeds`), its mean stands for all of them.
    """
    wanted, measured_on = json.loads(json.dumps(run_identity(config))), [data_folder(config)]
    if config.eval.truth == "teacher":
        measured_on.append(config.root / "logits" / teacher_stores(config.teacher)[TEACHER])
    if not all((folder / MANIFEST).exists() for folder in measured_on):
        return []
    found: dict[tuple[str, int], list[tuple[int, Run]]] = {}  # with the number of its seeds, by name and size
    for folder in sorted((config.root / "eval").glob("*")):
        student = run_folder(replace(config, role="student", run=folder.name))
        evaluation, trained = finished(folder, "eval"), finished(student, "student")
        if evaluation is None or trained is None or not is_whole(evaluation, config.eval.truth):
            continue
        differing = {field for field, _, _ in differing_fields(trained.config, wanted)}
        if differing <= {*APART} and made_from(evaluation, [student, *measured_on], config.root, verify=False):
            name, size = without(folder.name, "seed"), trained.rows["training"]
            found.setdefault((name, size), []).append(evaluated(folder, size))
    return [run for of in found.values() for run in of_most_seeds(of)]


def is_whole(evaluation: Manifest, truth: str) -> bool:
    """Whether the whole test split was evaluated, by a `truth`."""
    asked = evaluation.config.get("eval", {})
    return [asked.get("split"), asked.get("limit"), asked.get("truth", "votes")] == ["test", None, truth]


def evaluated(folder: Path, size: int) -> tuple[int, Run]:
    """Over how many seeds the student of an evaluation was measured, and its figures; `size`: its conversations."""
    seeds = folder / SEEDS
    figures = read_json(seeds if seeds.exists() else folder / "metrics.json", REMEDY)
    low, high = figures["judges"][STUDENT]["log_loss_ci"]
    return len(figures.get("seeds", [0])), Run(size, figures["judges"][STUDENT]["log_loss"], (high - low) / ERRORS)


def of_most_seeds(runs: Sequence[tuple[int, Run]]) -> list[Run]:
    """The one with the most seeds; all where each has one."""
    most, best = max(runs, key=itemgetter(0))
    return [run for _, run in runs] if most == 1 else [best]


def finished(folder: Path, stage: str) -> Manifest | None:
    """The manifest in `folder`; None where there is none that this version reads."""
    try:
        return read_manifest(folder, stage, verify=False)
    except UserError:
        return None
