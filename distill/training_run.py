"""The run that a configuration trains: its folder, what makes it that run, and all that the training is told."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.config import to_mapping
from core.errors import UserError
from core.renamed import LABEL_TOKENS
from distill.artefacts import data_folder
from distill.command_line import CONF
from distill.config import Config
from distill.entry_point import typed
from distill.logits import logits_folder
from students.training.optuna_studies import Trial
from students.training.recipe import Recipe, SoftTargets, TrainingRun


def run_folder(config: Config) -> Path:
    """Where the configured run lives: students/<run>/fold=<k> or teachers/<run>/fold=<k>."""
    return config.root / f"{config.role}s" / config.run / f"fold={config.fold}"


def run_identity(config: Config) -> dict[str, object]:
    """The part of the configuration that decides what is trained; a finished run with another one is refused."""
    values = to_mapping(config)
    if config.model.head != "label_tokens":  # they decide nothing, and runs of before had no others
        values["prompt"]["label_tokens"] = LABEL_TOKENS
    kept = ("role", "fold", "seed", "limit", "prompt", "model", "train", "loss", "optimizer")
    teacher = {name: values["teacher"][name] for name in ("name", "rows", "max_entropy")}
    if config.teacher.temperature_scaling:  # runs of before learned from no others
        teacher["temperature_scaling"] = True
    distils = config.role == "student" and config.loss.distils
    return {
        **{name: values[name] for name in kept},
        "data": config.data.name,
        **({"teacher": teacher} if distils else {}),
    }


def recipe(config: Config) -> Recipe:
    """How the configured run is trained."""
    return Recipe(config.seed, config.train, config.loss, config.optimizer, config.engine)


def training_run(config: Config) -> TrainingRun:
    """The configured run; one with `role=teacher` learns from the votes alone. Raises `UserError` without a teacher."""
    if config.role == "teacher":
        config = replace(config, loss=config.loss.of_votes_alone())
    sweep = config.sweep
    return TrainingRun(
        root=config.root,
        folder=run_folder(config),
        role=config.role,
        name=config.run,
        fold=config.fold,
        limit=config.limit,
        overwrite=config.overwrite,
        data=data_folder(config),
        soft_targets=soft_targets(config) if config.loss.distils else None,
        prompt=config.prompt,
        model=config.model,
        recipe=recipe(config),
        tracker=config.tracker,
        trial=None if sweep.study is None or sweep.trial is None else Trial(Path(sweep.study), sweep.trial),
        identity=run_identity(config),
        configuration=to_mapping(config),
    )


def soft_targets(config: Config) -> SoftTargets:
    """The teacher's logits that the configured run learns from."""
    teacher = config.teacher
    if teacher.name is None:
        raise UserError("teacher.name=null: name the teacher whose logits to distil, or train on votes with loss=votes")
    return SoftTargets(logits_folder(config), teacher.rows, teacher.max_entropy, teacher.same_prompt)


def named_teacher(config: Config) -> Config | None:
    """The experiment in conf/exp that has the name of the fold teachers, on this machine and these data."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    name = config.teacher.name
    if config.teacher.kind != "folds" or name is None or not Path(CONF, "exp", f"{name}.yaml").is_file():
        return None
    composing = GlobalHydra.instance().is_initialized()  # it is in an entry point; not where a program calls this
    with nullcontext() if composing else initialize_config_dir(CONF, version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("config", overrides=[f"+exp={name}"]), resolve=True)
    return replace(typed(values, []), plan=config.plan, paths=config.paths, data=config.data)
