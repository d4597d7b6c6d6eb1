"""What more conversations would buy, by the experiment's own finished runs on fewer."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.artefacts.contents import MANIFEST
from core.json_files import read_json
from distill.config import Config
from distill.plan.stage import Stage
from distill.training_run import run_identity
from eval.intervals import LEVEL
from eval.scaling import FEWEST, Run, forecast

APART = ("limit", "seed")  # in which small runs may differ
RUNS = "students/"
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
    wanted = _without(run_identity(config))
    for folder in sorted((config.root / "eval").glob("*")):
        manifest, metrics = (_read(folder / name) for name in (MANIFEST, "metrics.json"))
        student = metrics.get("judges", {}).get("student")
        place = next((name for name in manifest.get("parents", {}) if name.startswith(RUNS)), None)
        if student is None or place is None or metrics.get("split") != "test":
            continue
        trained = _read(config.root / place / MANIFEST)
        if trained.get("content") != manifest["parents"][place] or _without(trained["config"]) != wanted:
            continue
        seeds = _read(folder / "seeds.json").get("judges", {}).get("student", student)
        low, high = seeds["log_loss_ci"]
        yield Run(trained["rows"]["training"], seeds["log_loss"], (high - low) / ERRORS)


def _without(identity: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in identity.items() if name not in APART}, sort_keys=True)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "evaluate again") if path.exists() else {}
