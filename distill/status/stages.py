"""The stages of an experiment, in the order in which they run, and how each of them stands."""

from collections.abc import Iterator
from dataclasses import replace

from distill.config import Config
from distill.status.inputs import data_stage, logits_stages
from distill.status.judges import (
    evaluation_stage,
    export_stage,
    other_exports,
    other_runs,
    teacher_trainings,
    trainings,
)
from distill.status.stage import Stage


def stages_of(config: Config) -> Iterator[Stage]:
    """A row for each stage, and for each variant of one that lies there.

    A stage whose own artefact is as configured is stale all the same where one that it was made of is.
    """
    stale: list[str] = []
    for stage in in_order(config):
        if stage.state.name in ("done", "failed") and stage.command and stale:
            stage = replace(
                stage, state=replace(stage.state, name="stale", reason=f"made of {stale[0]}, which is stale")
            )
        if stage.state.name == "stale" and stage.command and not stage.state.unsure:
            stale.append(stage.name)
        yield stage


def in_order(config: Config) -> Iterator[Stage]:
    """Each stage by itself."""
    yield data_stage(config)
    if config.role == "teacher":
        folds = sorted({config.fold, *(config.teacher.folds if config.teacher.name == config.name else [])})
        yield from trainings(config, folds)
        yield from other_runs(config, folds)
        return
    if config.loss.distils:
        if config.teacher.kind == "folds" and config.teacher.name is not None:
            yield from teacher_trainings(config)
        yield from logits_stages(config)
    folds = list(config.export.folds or [config.fold])
    yield from trainings(config, folds)
    yield from other_runs(config, folds)
    yield export_stage(config)
    yield from other_exports(config)
    yield evaluation_stage(config)
