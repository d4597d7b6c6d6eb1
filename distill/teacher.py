"""Write a teacher's soft logits for every conversation in both orders: python -m distill.teacher +exp=demo

That is what `make teacher-logits` runs. `teacher.kind` says who the teacher is: fine-tuned `folds`, of which each row
is scored by those that did not train on it; one ready-made `model`; a `reward` model; or a `mixture` of stored
teachers. Logits are stored with the conversation's own a and b. The same command resumes a run that was killed, or one
with `limit=200`, which tells how long all rows would take: no row is scored twice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    from core.labels import Labels
    from core.records import Conversation
    from teachers.judgements import TeacherModel


def main(config: Config) -> None:
    from core.data.table import load_conversations
    from core.labels import labels_in
    from core.store.parts import clear

    store = logits_folder(config)
    rows, labels = load_conversations(data_folder(config)), labels_in(data_folder(config))
    if config.overwrite:
        clear(store)
    write = {"reward": from_rewards, "mixture": from_teachers}.get(config.teacher.kind, from_models)
    write(config, store, rows, labels)


def from_models(config: Config, store: Path, rows: "Sequence[Conversation]", labels: "Labels") -> None:
    """The logits of fold teachers, or of one ready-made model."""
    from core.artefacts.building import Artefact
    from core.models.resolving import resolve
    from teachers.judgements import ready_made_model, write_judgements

    teacher, parents = config.teacher, [data_folder(config)]
    if teacher.kind == "folds":
        models, parents = fold_models(config), [*parents, *teacher_folders(config)]
    else:
        folder = resolve(teacher.model, config.root, key="teacher.model")
        models = [ready_made_model(folder, config.prompt, teacher.method == "label_tokens")]
    identity = {"rows": teacher.rows, "judges": {str(model.fold): model.content for model in models}}
    artefact = Artefact(store, "teacher", identity, parents, config.root)
    write_judgements(artefact, models, rows, labels, teacher, config.scorers.teacher, config.limit)


def from_rewards(config: Config, store: Path, rows: "Sequence[Conversation]", labels: "Labels") -> None:
    """The rewards of single responses, then the logits that a model fitted on other folds' votes makes of them."""
    from core.artefacts.building import Artefact
    from core.artefacts.contents import content_hash
    from core.models.resolving import resolve
    from core.provenance import behind_model
    from teachers.reward_logits import RewardModel, score_responses, write_fitted

    teacher, rewards = config.teacher, config.root / "rewards" / store.name
    source = resolve(teacher.model, config.root, key="teacher.model")
    model = RewardModel.at(source, config.prompt.max_tokens, config.root / "models")
    score_responses(rewards, model, rows, teacher, config.scorers.teacher, config.limit)
    identity = {"l2": teacher.reward_l2, "rewards": content_hash(rewards), "limit": config.limit}
    artefact = Artefact(store, "teacher", identity, [data_folder(config)], config.root)
    fitted, behind = rows[: config.limit], behind_model(source)
    write_fitted(artefact, rewards, fitted, labels, teacher.reward_l2, behind, model.hashes)


def from_teachers(config: Config, store: Path, rows: "Sequence[Conversation]", labels: "Labels") -> None:
    """The mixture of the logits of other teachers."""
    from core.artefacts.building import Artefact
    from core.config import to_mapping
    from teachers.mixtures import shares, write_mixture

    mixture = config.teacher.mixture
    shares(mixture)
    folders = {name: config.root / "logits" / name for name in mixture.teachers}
    identity = {"mixture": to_mapping(mixture), "rows": config.teacher.rows, "limit": config.limit}
    artefact = Artefact(store, "teacher", identity, [data_folder(config), *folders.values()], config.root)
    in_fold = config.teacher.rows == "in_fold"
    write_mixture(artefact, folders, rows[: config.limit], labels, mixture, in_fold=in_fold)


def data_folder(config: Config) -> Path:
    """data/<name>: the conversations."""
    return config.root / "data" / config.data.name


def logits_folder(config: Config) -> Path:
    """logits/<teacher>, where the configured teacher's logits are. Raises `UserError` where none is named."""
    if config.teacher.name is None:
        raise UserError("teacher.name=null: name the teacher, as in teacher.name=llama70b")
    return config.root / "logits" / config.teacher.name


def teacher_folders(config: Config) -> list[Path]:
    """The fine-tuned fold teachers: teachers/<name>/fold=<k>, or below `teacher.path`."""
    parent = Path(config.teacher.path) if config.teacher.path else config.root / "teachers" / str(config.teacher.name)
    return [parent / f"fold={fold}" for fold in config.teacher.folds]


def fold_models(config: Config) -> "list[TeacherModel]":
    """The fine-tuned teachers of `teacher.folds`."""
    from students.trained import TrainedJudge, open_trained
    from teachers.judgements import TeacherModel

    if not config.teacher.folds:
        raise UserError("teacher.folds=[]: name the folds whose teachers score, as in teacher.folds=[0,1,2]")

    def model(fold: int, trained: TrainedJudge) -> TeacherModel:
        def folders() -> tuple[Path, Path | None]:
            return (trained.merged(config.root), None) if config.teacher.merge else trained.unmerged(config.root)

        told = (trained.manifest.content, fold, trained.learned(), trained.labels, trained.renderer, trained.base)
        return TeacherModel(*told, folders)

    opened = [open_trained(f, config.root, "train it first (role=teacher)") for f in teacher_folders(config)]
    return [model(fold, trained) for fold, trained in zip(config.teacher.folds, opened, strict=True)]


if __name__ == "__main__":
    entry_point(main)()
