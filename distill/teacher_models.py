"""The models of the configured teacher, ready to score."""

from pathlib import Path

from core.errors import UserError
from core.models.resolving import resolve
from distill.config import Config
from distill.logits import teacher_folders
from students.trained import TrainedJudge, open_trained
from teachers.judgements import TeacherModel, ready_made_model


def teacher_models(config: Config) -> list[TeacherModel]:
    """The fold teachers, or the one ready-made model. Raises `UserError` where they are not there."""
    teacher = config.teacher
    if teacher.kind == "folds":
        return fold_models(config)
    folder = resolve(teacher.model, config.root, key="teacher.model")
    return [ready_made_model(folder, config.prompt, teacher.method == "label_tokens")]


def fold_models(config: Config) -> list[TeacherModel]:
    """The fine-tuned teachers of `teacher.folds`."""
    if not config.teacher.folds:
        raise UserError("teacher.folds=[]: name the folds whose teachers score, as in teacher.folds=[0,1,2]")

    def model(fold: int, judge: TrainedJudge) -> TeacherModel:
        def folders() -> tuple[Path, Path | None]:
            return (judge.merged(config.root), None) if config.teacher.merge else judge.unmerged(config.root)

        who = (judge.manifest.content, fold, judge.learned(), judge.labels)
        return TeacherModel(*who, judge.renderer, judge.base, folders, judge.choice)

    opened = [open_trained(f, config.root, "train it first (role=teacher)") for f in teacher_folders(config)]
    return [model(fold, judge) for fold, judge in zip(config.teacher.folds, opened, strict=True)]
