"""What more conversations would buy, by the experiment's own finished runs on fewer."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from core.artefacts.identity import differing_fields
from core.artefacts.manifest import Manifest, made_from, read_manifest
from core.errors import UserError
from core.json_files import read_json
from distill.config import Config
from distill.plan.stage import Stage
from distill.training_run import run_folder, run_identity
from eval.intervals import LEVEL
from eval.judges.candidates import STUDENT
from eval.scaling import FEWEST, Run, forecast

APART = ("limit", "seed")  # in which small runs may differ
REMEDY = "evaluate again, with overwrite=true"
ERRORS = 3.92  # standard errors from one end of a 95% interval to the other


def forecast_stage(config: Config) -> Stage | None:
    """What the next doublings would buy; None where fewer than three sizes of this student were evaluated."""
    runs = list(evaluated_runs(config))
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
    return Stage(f"Log loss by training conversations, {1 - LEVEL:.0%} interval", lines)


def evaluated_runs(config: Config) -> Iterator[Run]:
    """The evaluated students that differ from the configured one in how many conversations they saw, and their seed."""
    wanted = json.loads(json.dumps(run_identity(config)))
    for folder in sorted((config.root / "eval").glob("*")):
        student = run_folder(replace(config, role="student", run=folder.name))
        evaluation, trained = finished(folder, "eval"), finished(student, "student")
        if evaluation is None or trained is None or not made_from(evaluation, [student], config.root):
            continue
        metrics, seeds = read_json(folder / "metrics.json", REMEDY), folder / "seeds.json"
        differing = {field for field, _, _ in differing_fields(trained.config, wanted)}
        if metrics["split"] == "test" and differing <= {*APART}:
            judges = read_json(seeds, REMEDY)["judges"] if seeds.exists() else metrics["judges"]
            low, high = judges[STUDENT]["log_loss_ci"]
            yield Run(trained.rows["training"], judges[STUDENT]["log_loss"], (high - low) / ERRORS)


def finished(folder: Path, stage: str) -> Manifest | None:
    """The manifest in `folder`; None where there is none that this version reads."""
    try:
        return read_manifest(folder, stage, verify=False)
    except UserError:
        return None
