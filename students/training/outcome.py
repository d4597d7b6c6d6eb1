"""What `metrics.json` says of a run."""

import json
import math
from pathlib import Path
from typing import Any

from core.json_files import write_json
from students.training.checkpoints import RunState
from students.training.model import JudgeModel

METRICS = "metrics.json"


def write_metrics(folder: Path, judge: JudgeModel, state: RunState, training: int, validation: int) -> None:
    """Write that of a finished run over so many conversations."""
    write_json(folder / METRICS, finished_metrics(judge, state, training, validation))


def finished_metrics(judge: JudgeModel, state: RunState, training: int, validation: int) -> dict[str, Any]:
    tokens, seconds = (sum(record[key] for record in state.history) for key in ("tokens", "seconds"))
    kept = state.kept
    error = kept["validation_standard_error"]
    return {
        "validation_log_loss": kept["validation_log_loss"],
        "validation_objective": kept["validation_objective"],
        "validation_standard_error": error if math.isfinite(error) else None,
        "best_step": kept["step"],
        "steps": state.step,
        "conversations": training,
        "validation_conversations": validation,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "padding": sum(record["padding"] * record["tokens"] for record in state.history) / tokens,
        "trainable_parameters": sum(
            getattr(p, "ds_numel", p.numel())  # ZeRO-3 leaves a rank a part of each, or none
            for part in judge.trainable()
            for p in part
        ),
    }


def write_pruned_metrics(folder: Path, state: RunState) -> None:
    """Write that of a run which a search stopped early."""
    kept = {"validation_log_loss": state.kept["validation_log_loss"], "best_step": state.kept["step"]}
    write_json(folder / METRICS, {"pruned": True, **kept, "steps": state.step})


def finished_log_loss(folder: Path) -> float:
    """The validation log loss of the judge that a finished run kept."""
    return float(json.loads((folder / METRICS).read_text())["validation_log_loss"])
