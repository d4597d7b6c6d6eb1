"""What a configuration's teacher leads to: the folders of its logits, and of what they follow from.

`distill.teacher` builds these artefacts, `distill.status` looks whether they lie there: both ask here what they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.artefacts.building import Artefact
from core.config import to_mapping
from core.errors import UserError
from distill.artefacts import data_folder
from distill.config import Config
from teachers.config import store_name


def given_folder(config: Config) -> Path:
    """logits/<teacher>: what the configured teacher gave. Raises `UserError` where none is named."""
    if config.teacher.name is None:
        raise UserError("teacher.name=null: name the teacher, as in teacher.name=llama70b")
    return config.root / "logits" / config.teacher.name


def logits_folder(config: Config) -> Path:
    """What a student learns from: `given_folder`, or its logits scaled (`teacher.temperature_scaling`)."""
    given = given_folder(config)
    return given.with_name(store_name(given.name, config.teacher.temperature_scaling))


def teacher_folders(config: Config) -> list[Path]:
    """The fine-tuned fold teachers: teachers/<name>/fold=<k>, or below `teacher.path`."""
    parent = Path(config.teacher.path) if config.teacher.path else config.root / "teachers" / str(config.teacher.name)
    return [parent / f"fold={fold}" for fold in config.teacher.folds]


def judged_logits(config: Config, judges: Mapping[int, str]) -> Artefact:
    """The logits of fold teachers, or of one ready-made model. `judges`: what identifies each, by its fold."""
    folds = teacher_folders(config) if config.teacher.kind == "folds" else []
    identity = {"rows": config.teacher.rows, "judges": {str(fold): content for fold, content in judges.items()}}
    return Artefact(given_folder(config), "teacher", identity, [data_folder(config), *folds], config.root)


def rewards_folder(config: Config) -> Path:
    """rewards/<teacher>: the rewards of single responses."""
    return config.root / "rewards" / given_folder(config).name


def reward_logits(config: Config, rewards: str) -> Artefact:
    """The logits that rewards amount to. `rewards`: their content hash."""
    identity = {"l2": config.teacher.reward_l2, "rewards": rewards, "limit": config.limit}
    return Artefact(given_folder(config), "teacher", identity, [data_folder(config)], config.root)


def stored_logits(config: Config, stored: Mapping[str, Any]) -> Artefact:
    """The logits of stored opinions. `stored`: what identifies these."""
    identity = {**stored, "l2": config.teacher.reward_l2, "limit": config.limit}
    return Artefact(given_folder(config), "teacher", identity, [data_folder(config)], config.root)


def chat_folder(config: Config) -> Path:
    """chat/<teacher>: the answers of a chat API."""
    return config.root / "chat" / given_folder(config).name


def chat_logits(config: Config, questions: Mapping[str, Any]) -> Artefact:
    """The logits of a chat API's answers. `questions`: what was asked of whom."""
    return Artefact(given_folder(config), "teacher", {"chat": questions}, [data_folder(config)], config.root)


def mixed_folders(config: Config) -> dict[str, Path]:
    """The logits of the teachers that a mixture is made of, by name."""
    return {name: config.root / "logits" / name for name in config.teacher.mixture.teachers}


def mixed_logits(config: Config) -> Artefact:
    """The logits of a mixture of teachers."""
    scaled = config.teacher.temperature_scaling is not False  # it stood with the mixture's own keys before
    mixture = {**to_mapping(config.teacher.mixture), "temperature_scaling": scaled}
    identity = {"mixture": mixture, "rows": config.teacher.rows, "limit": config.limit}
    parents = [data_folder(config), *mixed_folders(config).values()]
    return Artefact(given_folder(config), "teacher", identity, parents, config.root)


def calibrated_logits(config: Config) -> Artefact:
    """The logits of a teacher, each fold's divided by the temperature that fits the others' votes."""
    identity = {"temperature_scaling": True, "rows": config.teacher.rows, "limit": config.limit}
    return Artefact(
        logits_folder(config), "teacher", identity, [data_folder(config), given_folder(config)], config.root
    )
