"""The stages of an experiment: the one place here that reads the whole configuration."""

from collections.abc import Iterator
from dataclasses import replace

from core.errors import UserError
from core.models.shapes import Shape, folder_of
from distill.artefacts import data_folder
from distill.config import Config
from distill.plan.chat import chat_stage
from distill.plan.forecast import forecast_stage
from distill.plan.scoring import scoring_stage
from distill.plan.stage import Stage
from distill.plan.t4 import t4_stage
from distill.plan.training import Training, training_stage
from distill.plan.work import Work, computed_share, scored_share, work_of
from distill.training_run import named_teacher


def stages_of(config: Config) -> Iterator[Stage]:
    """The teacher's training and scoring, the student's training, the export on T4s: those that the experiment has.

    Last what more conversations would buy, where finished runs tell.
    """
    base = config.model.base
    if base is None:
        raise UserError("model.base=null: name the model to train (hub id, folder, pip:PACKAGE), or give +exp=gemma9b")
    if config.role == "teacher":
        yield from teacher_stages(config, config)
    elif config.loss.distils:
        yield from teacher_stages(config, named_teacher(config))
    if config.role == "student":
        shape, work = count(config, base), work_for(config, base)
        yield training_stage("student", training_of(config, base, shape), work, config.plan)
        yield t4_stage(base, shape, work, config.t4, config.export.format)
        if (found := forecast_stage(config)) is not None:
            yield found


def teacher_stages(config: Config, trained: Config | None) -> Iterator[Stage]:
    """Training and scoring where the teacher is `trained` here; scoring alone, or a remedy, where it is not."""
    if trained is not None and trained.model.base is not None:
        base = trained.model.base
        shape, work = count(trained, base), work_for(trained, base)
        yield training_stage("teacher", training_of(trained, base, shape), work, trained.plan)
        memory, computed = config.scorers.teacher.memory_share, scored_share(trained.prompt, data_folder(trained))
        yield scoring_stage(base, shape, work, config.teacher, memory, trained.plan, computed)
    elif config.teacher.model is not None:
        base = config.teacher.model
        whole = replace(config, model=replace(config.model, layers=None, freeze_layers=0))
        memory, computed = config.scorers.teacher.memory_share, scored_share(config.prompt, data_folder(config))
        told = (config.teacher, memory, config.plan, computed)
        yield scoring_stage(base, count(whole, base), work_for(config, base), *told)
    elif config.teacher.kind == "chat":
        data = data_folder(config)
        yield chat_stage(config.teacher.of_chat, config.prompt, data, config.plan.assumed)
    elif config.teacher.kind == "stored":
        yield Stage(f"The teacher, {config.teacher.name}", [("cost", "none: its opinions are stored")])
    else:
        remedy = "plan each of teacher.mixture.teachers by itself"
        if config.teacher.kind != "mixture":
            remedy = f"no conf/exp/{config.teacher.name}.yaml says what it is: give teacher=model teacher.model=..."
        yield Stage(f"The teacher, {config.teacher.name}", [("not planned", remedy)])


def count(config: Config, base: str) -> Shape:
    """What the model `base` consists of, trained as configured."""
    from students.training.shape import trained_shape

    return trained_shape(base, config.root, config.model)


def work_for(config: Config, base: str) -> Work:
    """What there is to do with the model `base`."""
    return work_of(config.plan, config.prompt, data_folder(config), folder_of(base, config.root))


def training_of(config: Config, base: str, shape: Shape) -> Training:
    """The configured training, as far as memory and time depend on it."""
    return Training(
        base=base,
        shape=shape,
        model=config.model,
        train=config.train,
        engine=config.engine,
        masters=config.optimizer.master_weights,
        longest=config.prompt.max_tokens,
        folds=config.data.folds.count,
        test_share=config.data.test_share,
        computed=computed_share(config.prompt, data_folder(config), config.train, config.seed),
    )
