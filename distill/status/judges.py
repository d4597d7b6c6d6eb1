"""What is trained, exported and evaluated, and what lies beside it: other folds, seeds, variants and formats."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.artefacts.identity import differing_fields
from core.artefacts.manifest import Manifest, read_manifest
from core.artefacts.state import changed_since, listed, state_in
from core.exported import average_folder, unpacked_folder
from core.records import TEST
from distill.artefacts import data_folder, evaluation, evaluation_folder, exported_judge
from distill.config import Config
from distill.logits import teacher_folders
from distill.status import figures
from distill.status.stage import Stage, stage_of
from distill.training_run import named_teacher, run_folder, run_identity, training_run


def teacher_trainings(config: Config) -> Iterator[Stage]:
    """A row for each fold teacher; of those that lie elsewhere (`teacher.path`) nobody knows how to train them."""
    teacher = config.teacher
    own = teacher.name == config.name
    plain = own and config.run == config.name  # else an override names another run than the teacher's
    known = config if plain else None if teacher.path is not None else named_teacher(config)
    for fold, folder in zip(teacher.folds, teacher_folders(config), strict=True):
        name = f"teacher {teacher.name}, fold {fold}"
        command = ["distill.student", f"fold={fold}", *(["role=teacher"] if own else [])]
        experiment = None if plain else f"+exp={teacher.name}"
        if known is None or teacher.path is not None:
            state = state_in(folder, "student", lambda _: "")
            said = figures.figure(figures.of_training, folder, state.manifest)
            yield Stage(name, folder, state, said, command, experiment)
        else:
            trained = replace(known, role="teacher", fold=fold, run=str(teacher.name))
            yield training_stage(trained, name, command, experiment)


def trainings(config: Config, folds: Sequence[int]) -> Iterator[Stage]:
    """A row for each of the folds that the experiment is made of."""
    for fold in folds:
        yield training_stage(
            replace(config, fold=fold), f"{config.role} {config.run}, fold {fold}", ["distill.student", f"fold={fold}"]
        )


def training_stage(config: Config, name: str, command: Sequence[str], experiment: str | None = None) -> Stage:
    """The row of the configured run."""
    folder = run_folder(config)
    stage = stage_of(name, folder, lambda: training_run(config).artefact, figures.of_training, command, experiment)
    if stage.state.name in ("interrupted", "running"):
        return replace(stage, figure=figures.training_so_far(folder))
    return stage


def other_runs(config: Config, folds: Sequence[int]) -> Iterator[Stage]:
    """The runs of the same experiment with other overrides, seeds or folds that lie there."""
    trained = config.root / f"{config.role}s"
    own = {run_folder(replace(config, fold=fold)) for fold in folds}
    for variant in sorted(path for path in trained.glob("*") if path.name.split(",")[0] == config.name):
        for folder in sorted(variant.glob("fold=*")):
            if folder in own or not folder.name.removeprefix("fold=").isdecimal():
                continue
            state = state_in(folder, "student", lambda found, at=folder: other_settings(config, found, at))  # type: ignore[misc]
            said = figures.figure(figures.of_training, folder, state.manifest) or figures.training_so_far(folder)
            yield Stage(f"{config.role} {variant.name}, fold {folder.name[5:]}", folder, state, said)


def other_settings(config: Config, found: Manifest, folder: Path) -> str:
    """In what a run differs from the experiment beside its own overrides; "" where it does not."""
    if changed := changed_since(found, config.root):
        return changed
    runs = (folder.parent.name, config.run)
    keys = {override.split("=")[0].split("@")[0] for run in runs for override in run.split(",")[1:]} | {"fold"}
    ignored = keys | ({"teacher"} if any(key.split(".")[0] == "loss" for key in keys) else set())
    differing = differing_fields(found.config, json.loads(json.dumps(run_identity(config))))
    return listed([each for each in differing if not any(each[0] == k or each[0].startswith(f"{k}.") for k in ignored)])


def export_stage(config: Config) -> Stage:
    """The row of the configured export."""
    return as_checked(
        stage_of(
            f"export {config.export.name}",
            config.export_folder(),
            lambda: export_of(config),
            figures.of_export,
            ["distill.export"],
        )
    )


def export_of(config: Config) -> Artefact:
    """The artefact of the configured export. Raises `UserError` where its students are not trained yet."""
    folds = config.export.folds or [config.fold]
    folders = [run_folder(replace(config, fold=fold)) for fold in folds]
    students = [read_manifest(folder, "student", "train it first", verify=False) for folder in folders]
    judge = folders[0]
    if config.export.folds:
        judge = average_folder(config.root, config.export.average, [student.content for student in students])
    return exported_judge(config, judge, students[0].config["prompt"])


def as_checked(stage: Stage) -> Stage:
    """The row of an export, failed where its checks say so."""
    manifest = stage.state.manifest
    if manifest is None or stage.state.name != "done" or not manifest.extra.get("failed"):
        return stage
    return replace(stage, state=replace(stage.state, name="failed", reason="; ".join(manifest.extra["failed"])))


def other_exports(config: Config) -> Iterator[Stage]:
    """The other finished exports of the same run."""
    for path in sorted(config.export_folder().parent.glob(f"*/{MANIFEST}")):
        folder = path.parent
        state = state_in(folder, "export", lambda found: changed_since(found, config.root))
        if folder != config.export_folder() and state.manifest is not None:  # else of another stage: averages-*
            said = figures.figure(figures.of_export, folder, state.manifest)
            yield as_checked(Stage(f"export {folder.name}", folder, state, said))


def evaluation_stage(config: Config) -> Stage:
    """The row of the evaluation."""
    folder = evaluation_folder(config)
    stage = stage_of("eval", folder, lambda: evaluation_of(config), figures.of_evaluation, ["eval"])
    if stage.state.name != "done":
        return stage
    silent = figures.unanswered(folder)
    problem = f"{', '.join(silent)} gave no answer" if silent else ""
    problem = stage.figure if stage.figure == figures.OTHER_VERSION else problem
    return replace(stage, state=replace(stage.state, name="stale", reason=problem)) if problem else stage


def evaluation_of(config: Config) -> Artefact:
    """The artefact of the configured evaluation."""
    from eval.judges.candidates import candidates, file_digests, teacher_stores

    named = {name: str(unpacked_folder(Path(path), config.root)) for name, path in config.eval.judges.items()}
    found = candidates(config.root, config.run, config.fold, teacher_stores(config.teacher), named)
    unvoted = config.eval.truth == "teacher"
    split = config.eval.split if has_test_split(data_folder(config), unvoted) else "fold"
    return evaluation(config, split, [candidate.artefact for candidate in found], file_digests(found))


def has_test_split(data: Path, unvoted: bool) -> bool:
    """Whether there are conversations to score in the test split, voted on or, with `unvoted`, any.

    Taken for granted where nothing is prepared.
    """
    from core.data.table import CONVERSATIONS
    from core.tables import read_parquet

    if not (data / MANIFEST).exists():
        return True
    rows = read_parquet(data / CONVERSATIONS, columns=["votes", "fold"]).filter(fold=TEST)
    return not (rows if unvoted else rows.drop_nulls("votes")).is_empty()
