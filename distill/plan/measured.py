"""The measured speed of a machine, in place of the plan's assumptions; `bench.gpu_speed` writes the file."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from core.bounds import Positive
from core.config import from_mapping
from core.errors import UserError
from distill.plan.config import PlanConfig


@dataclass(frozen=True)
class MeasuredSpeed:
    """What scoring and training reached on one device, in teraFLOPS of the formulas' FLOPs.

    `memory_overhead`: the activations' part of the measured peak over the formula's. `measured`: what was run.
    """

    device: str
    memory_gb: Positive
    scoring_tflops: Positive
    training_tflops: Positive
    memory_overhead: Positive
    measured: str


def read_measured(path: Path) -> MeasuredSpeed:
    """Raises `UserError` where the file is missing or is something else."""
    if not path.is_file():
        raise UserError(f"plan.measured={path}: no such file; python -m bench.gpu_speed writes one")
    try:
        return from_mapping(MeasuredSpeed, json.loads(path.read_text()))
    except (UserError, json.JSONDecodeError) as error:
        raise UserError(f"plan.measured={path} was not written by bench.gpu_speed: {error}") from error


def with_measured(plan: PlanConfig) -> PlanConfig:
    """The plan with the measured device in place of the assumed one, where it names a file.

    Training with 4-bit weights is not measured: it keeps its assumed ratio to training without.
    """
    if plan.measured is None:
        return plan
    found = read_measured(Path(plan.measured))
    training = found.training_tflops / plan.peak_tflops
    assumed = plan.utilisation
    utilisation = replace(
        assumed,
        scoring=found.scoring_tflops / plan.peak_tflops,
        training=training,
        training_4bit=training * assumed.training_4bit / assumed.training,
    )
    return replace(
        plan,
        gpu=found.device,
        memory_gb=found.memory_gb,
        memory_overhead=found.memory_overhead,
        utilisation=utilisation,
    )
