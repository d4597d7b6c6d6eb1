"""Which artefacts may judge: those of the experiment, and those that the user names. Nobody is asked anything here."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import read_manifest
from core.errors import UserError
from core.naming import split_overrides, variant
from teachers.config import TeacherConfig, store_name

STUDENT, TEACHER = "student", "teacher"
NO_TEACHER = "loss=votes"
BASELINES = ("prior", "surface", "bradley_terry")
Stage = Literal["teacher", "student", "export", "predictions"]
STAGES: Mapping[str, Stage] = {"teacher": "teacher", "student": "student", "export": "export"}


@dataclass(frozen=True)
class Candidate:
    """An artefact that may judge: a folder of `stage`, or a predictions.parquet (stage "predictions") of `row`'s.

    One that the user `named` is refused where it is unfit, one that was found is left out.
    """

    name: str
    path: Path
    stage: Stage
    remedy: str = ""
    named: bool = False

    @property
    def artefact(self) -> Path:
        """The folder whose manifest tells how it was made."""
        return self.path.parent if self.stage == "predictions" else self.path


def candidates(root: Path, run: str, fold: int, stores: Mapping[str, str], named: Mapping[str, str]) -> list[Candidate]:
    """Every artefact that a run may have as a judge, there or not, and those that are `named`, by their paths.

    `stores` are logits below `root`, by judge (`teacher_stores`). Raises `UserError` for a name that is taken, or a
    path where nothing is.
    """
    students = {"student_no_teacher": variant(run, NO_TEACHER), STUDENT: run}
    found = [
        *(Candidate(name, root / "logits" / store, "teacher", "make teacher-logits") for name, store in stores.items()),
        *(Candidate(name, _student(root, of, fold), "student", "make student") for name, of in students.items()),
        *(Candidate(f"student_{path.name}", path, "export") for path in _exports(root / "exports" / run)),
    ]
    taken = {*BASELINES, "bayes", *(candidate.name for candidate in found)}
    for name, path in named.items():
        if name in taken or not name.replace("-", "_").replace(".", "_").isidentifier():
            raise UserError(f"eval.judges.{name}: choose another name, of letters, digits, '-', '_' and '.', not taken")
        found.append(_named(name, path))
    return found


def teacher_stores(teacher: TeacherConfig) -> dict[str, str]:
    """The logits stores of a teacher and, where it is a mixture, of those that it mixes, by judge."""
    mixed = teacher.mixture.teachers if teacher.kind == "mixture" else []
    return {TEACHER: store_name(str(teacher.name), teacher.temperature_scaling)} | {
        f"{TEACHER}_{name}": name for name in mixed
    }


def over_seeds(
    root: Path, run: str, fold: int, seed: int, seeds: Sequence[int], variants: Sequence[str], experiment: str
) -> dict[str, list[Candidate]]:
    """The student and each of its `variants` (`eval.variants`), by name, as trained from each of `seeds`.

    `run` is that of `seed`. Raises `UserError` with the command that trains what is missing.
    """
    found: dict[str, list[Candidate]] = {name: [] for name in (STUDENT, *variants)}
    for other in seeds:
        seeded = run if other == seed else variant(run, f"seed={other}")
        for name, trained in found.items():
            overrides = [] if name == STUDENT else split_overrides(name)
            folder = _student(root, variant(seeded, *overrides), fold)
            if not (folder / MANIFEST).exists():
                raise UserError(
                    f"eval.seeds={list(seeds)}: {name} of seed {other} is missing; train it first: "
                    f"python -m distill.student +exp={experiment} {' '.join([f'seed={other}', *overrides])}"
                )
            trained.append(Candidate(name, folder, "student", named=True))
    return found


def file_digests(found: Sequence[Candidate]) -> dict[str, str]:
    """sha256 of each predictions.parquet among candidates, which need not lie beside a manifest."""
    files = {candidate.name: candidate.path for candidate in found if candidate.stage == "predictions"}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def _student(root: Path, run: str, fold: int) -> Path:
    return root / "students" / run / f"fold={fold}"


def _exports(folder: Path) -> list[Path]:
    """The finished exports of a run, those of other folds and averages among them: whether they are fit is seen."""
    manifests = sorted(folder.glob(f"*/{MANIFEST}"))
    return [path.parent for path in manifests if read_manifest(path.parent, verify=False).stage == "export"]


def _named(name: str, path: str) -> Candidate:
    """The candidate of an entry of `eval.judges`, by what lies at its path."""
    place = Path(path)
    if place.is_file():
        return Candidate(name, place, "predictions", named=True)
    stage = read_manifest(place).stage
    if stage not in STAGES:
        known = "a trained run, an export, a logits store or a predictions.parquet"
        raise UserError(f"eval.judges.{name}={path}: stage {stage!r} leaves no judge; give {known}")
    return Candidate(name, place, STAGES[stage], named=True)
