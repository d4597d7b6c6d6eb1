"""The judges of one experiment, each as predictions for the same held-out conversations in both orders.

Which artefacts may judge is known before any is asked (`candidates`), and what a model answered is kept
(`eval.answers`): an evaluation that was killed goes on, and one that a judge is added to asks no other again.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from distill import runs
from distill.config import Config, ScorerConfig
from distill.door import variant
from distill.errors import UserError
from distill.exported import open_exported
from distill.file_kinds import seems
from distill.readers import DAMAGE
from distill.records import ORDERS, Conversation
from distill.scoring import SCORES, mean_logits
from distill.store import read_logits
from eval import baselines
from eval.answers import answers
from eval.leaderboard import bradley_terry
from eval.recalibration import IDENTITY, Recalibration, read_recalibration
from eval.seeds import STUDENT
from students.trained import TRAINED_ON, open_trained, trained_on

log = logging.getLogger(__name__)
NO_TEACHER = "loss=votes"
BASELINES = ("prior", "surface", "bradley_terry")
HISTORY = "history.parquet"
MADE_OF_RUNS = ("export", "average")


class Unfit(UserError):
    """Why an artefact cannot judge these conversations."""


@dataclass(frozen=True)
class Candidate:
    """An artefact that may judge: a folder of `stage`, or a predictions.parquet (stage "predictions") of `row`'s.

    One that the user `named` is refused where it is unfit, one that was found is left out.
    """

    name: str
    path: Path
    stage: str
    remedy: str = ""
    named: bool = False

    @property
    def artefact(self) -> Path:
        """The folder whose manifest tells how it was made."""
        return self.path.parent if self.stage == "predictions" else self.path


@dataclass
class Judges:
    """What each judge said (`SCORES`, the baselines without lengths), and the artefact that it comes from.

    `recalibrations` are those beside exports; `failed` says which checks an export failed.
    """

    predictions: dict[str, pl.DataFrame] = field(default_factory=dict)
    artefacts: dict[str, Path] = field(default_factory=dict)
    recalibrations: dict[str, Recalibration] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)


def candidates(config: Config) -> list[Candidate]:
    """Every artefact that the experiment may have as a judge, there or not, and those of `eval.judges`.

    Raises `UserError` for a name that is taken, or a path where nothing is.
    """
    root, fold = config.root, f"fold={config.fold}"
    trained = {"student_no_teacher": variant(config.run, NO_TEACHER), STUDENT: config.run}
    stores = {"teacher": str(config.teacher.name)}
    if config.teacher.kind == "mixture":
        stores |= {f"teacher_{name}": name for name in config.teacher.mixture.teachers}
    found = [
        *(Candidate(name, root / "logits" / store, "teacher", "make teacher-logits") for name, store in stores.items()),
        *(Candidate(name, root / "students" / run / fold, "student", "make student") for name, run in trained.items()),
        *(Candidate(f"student_{path.name}", path, "export") for path in _exports(config)),
    ]
    taken = {*BASELINES, "bayes", *(candidate.name for candidate in found)}
    for name, path in config.eval.judges.items():
        if name in taken or not name.replace("-", "_").replace(".", "_").isidentifier():
            raise UserError(f"eval.judges.{name}: choose another name, of letters, digits, '-', '_' and '.', not taken")
        found.append(_named(name, path))
    return found


def file_digests(found: Sequence[Candidate]) -> dict[str, str]:
    """sha256 of each predictions.parquet among candidates, which need not lie beside a manifest."""
    files = {candidate.name: candidate.path for candidate in found if candidate.stage == "predictions"}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def judge_all(
    config: Config, found: Sequence[Candidate], held_out: Sequence[Conversation], training: Sequence[Conversation]
) -> Judges:
    """The baselines, and every candidate that is fit. Raises `UserError` where the student is not, or a named one."""
    judges = Judges()
    judges.predictions |= {
        "prior": baselines.prior(training, held_out),
        "surface": baselines.surface(training, held_out),
    }
    if any(c.model_a and c.model_b for c in held_out):
        judges.predictions["bradley_terry"] = bradley_terry(training, held_out)
    for candidate in found:
        try:
            add(judges, candidate, config, held_out)
        except Unfit as reason:
            if candidate.named:
                raise
            log.warning("%s left out: %s", candidate.name, reason)
    if STUDENT not in judges.predictions:
        raise UserError(
            f"{config.root / 'students' / config.run} has no finished fold={config.fold}: train it first (make student)"
        )
    return judges


def add(judges: Judges, candidate: Candidate, config: Config, held_out: Sequence[Conversation]) -> None:
    """Ask a candidate. Raises `Unfit` where it is not there, does not cover the conversations, or has learned them."""
    path = candidate.path
    if candidate.stage != "predictions" and not (path / runs.MANIFEST).exists():
        raise Unfit(f"{path} is not there" + (f" ({candidate.remedy})" if candidate.remedy else ""))
    frame = READERS[candidate.stage](candidate, config, held_out)
    counts = frame.filter(pl.col("id").is_in([c.id for c in held_out])).group_by("id").agg(pl.col("order").n_unique())
    if lacking := len(held_out) - len(counts.filter(pl.col("order") == len(ORDERS))):
        raise Unfit(f"{path} lacks {lacking} of {len(held_out)} held-out conversations, judged in both orders")
    judges.predictions[candidate.name] = frame
    judges.artefacts[candidate.name] = candidate.artefact
    if candidate.stage == "export":
        judges.failed[candidate.name] = runs.read_manifest(path).extra.get("failed", [])
        if (recalibration := read_recalibration(path)) != IDENTITY:
            judges.recalibrations[candidate.name] = recalibration


def judge_seeds(config: Config, held_out: Sequence[Conversation]) -> dict[str, list[pl.DataFrame]]:
    """Predictions of the student and of each of `eval.variants`, by name, for each of `eval.seeds`."""
    found: dict[str, list[pl.DataFrame]] = {name: [] for name in (STUDENT, *config.eval.variants)}
    for seed in config.eval.seeds:
        run = config.run if seed == config.seed else variant(config.run, f"seed={seed}")
        for name, frames in found.items():
            overrides = [] if name == STUDENT else name.split(",")
            folder = config.root / "students" / variant(run, *overrides) / f"fold={config.fold}"
            if not (folder / runs.MANIFEST).exists():
                raise UserError(
                    f"eval.seeds={config.eval.seeds}: {name} of seed {seed} is missing; train it first: "
                    f"python -m distill.student +exp={config.name} {' '.join([f'seed={seed}', *overrides])}"
                )
            frames.append(_trained(Candidate(name, folder, "student"), config, held_out))
    return found


def _exports(config: Config) -> list[Path]:
    """The finished exports of this run and fold. Those of other folds, and averages, learned what is held out here."""
    found = []
    for path in sorted((config.root / "exports" / config.run).glob(f"*/{runs.MANIFEST}")):
        manifest = runs.read_manifest(path.parent, verify=False)
        if manifest.stage != "export":
            continue
        folds = manifest.config["export"].get("folds") or [manifest.config.get("fold")]
        if folds == [config.fold]:
            found.append(path.parent)
        else:
            log.info("%s left out: it was trained on fold %d", path.parent, config.fold)
    return found


def _named(name: str, path: str) -> Candidate:
    """The candidate of an entry of `eval.judges`, by what lies at its path."""
    place = Path(path)
    if place.is_file():
        return Candidate(name, place, "predictions", named=True)
    stage = runs.read_manifest(place).stage
    if stage not in READERS:
        known = "a trained run, an export, a logits store or a predictions.parquet"
        raise UserError(f"eval.judges.{name}={path}: stage {stage!r} leaves no judge; give {known}")
    return Candidate(name, place, stage, named=True)


def _stored(candidate: Candidate, config: Config, held_out: Sequence[Conversation]) -> pl.DataFrame:
    """What a store holds of the rows that its judges were not trained on, the mean over judges."""
    logits = read_logits(candidate.path, candidate.remedy)
    own = pl.DataFrame({"id": [c.id for c in held_out], "text": [c.sided_fingerprint() for c in held_out]}).cast(
        {"text": pl.UInt64}
    )
    logits = logits.filter(~pl.col("in_sample")).join(own, on="id")
    if other := len(logits.filter(pl.col("fingerprint") != pl.col("text"))):
        raise Unfit(f"{candidate.path} holds {other} judgements of other texts under the held-out ids")
    lengths = pl.col("prompt_tokens", "truncated").first()
    return logits.group_by("id", "order", maintain_order=True).agg(mean_logits(), lengths).cast(SCORES)


def _trained(candidate: Candidate, config: Config, held_out: Sequence[Conversation]) -> pl.DataFrame:
    """The answers of a trained run."""
    judge = open_trained(candidate.path, config.root, candidate.remedy)
    _refuse_learned(candidate.path, held_out, config.root)
    model = judge.merged(config.root)
    return answers(model, judge.manifest.content, judge.renderer, config.eval.student, held_out, config.root)


def _exported(candidate: Candidate, config: Config, held_out: Sequence[Conversation]) -> pl.DataFrame:
    """The answers of an export, through the engine that it is meant for; one that failed its checks answers, too."""
    path, root = candidate.path, config.root
    manifest = runs.read_manifest(path)
    if candidate.named:
        renderer = open_exported(path).renderer
    else:
        student = root / "students" / config.run / f"fold={config.fold}"
        if not (student / runs.MANIFEST).exists():
            raise Unfit(f"the student that it was made of is not at {student}")
        if not runs.made_from(manifest, [student], root):
            raise UserError(f"{path} was exported from another student than {student}: export it with overwrite=true")
        renderer = open_trained(student, root, "make student").renderer
    _refuse_learned(path, held_out, root)
    scorer = _engine(manifest.config["export"]["format"], config.eval.exported)
    return answers(path, manifest.content, renderer, scorer, held_out, root)


def _predicted(candidate: Candidate, config: Config, held_out: Sequence[Conversation]) -> pl.DataFrame:
    """A file of `id`, `order` and `logits` in the conversation's own a and b; of several judges, the student's."""
    try:
        frame = pl.read_parquet(candidate.path)
    except DAMAGE as error:
        kind = seems(candidate.path, set()) or f"is damaged, or no parquet ({error})"
        raise UserError(f"{candidate.path} {kind}; a judge is a predictions.parquet, as eval writes it") from error
    if missing := {"id", "order", "logits"} - set(frame.columns):
        raise Unfit(f"{candidate.path} has no columns {sorted(missing)}, only {frame.columns}")
    if "judge" in frame.columns and frame["judge"].n_unique() > 1:
        frame = frame.filter(judge=STUDENT)
    try:
        return frame.select(pl.col(name).cast(kind) for name, kind in SCORES.items() if name in frame.columns)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{candidate.path} holds {frame.schema}, expected {SCORES} ({error})") from error


READERS = {"teacher": _stored, "student": _trained, "export": _exported, "predictions": _predicted}


def _engine(format: str, scorer: ScorerConfig) -> ScorerConfig:
    """The scorer for a format: without a GPU vLLM runs w8a8 alone, and transformers the others."""
    import torch

    if scorer.backend != "vllm" or format == "w8a8" or torch.cuda.is_available():
        return scorer
    if format == "gptq":
        raise Unfit("without a GPU nothing reads the GPTQ layout; w8a16 has the same weights")
    return replace(scorer, backend="transformers")


def _refuse_learned(folder: Path, held_out: Sequence[Conversation], root: Path) -> None:
    """Raise `Unfit` where what `folder` was made from trained on held-out conversations, or chose checkpoints by them.

    So it does where nobody can tell.
    """
    learned = frozenset[int]().union(*(trained_on(run) for run in _training_runs(folder, root)))
    if leaked := sum(c.fingerprint() in learned for c in held_out):
        raise Unfit(f"{folder} was trained on {leaked} of {len(held_out)} held-out conversations")


def _training_runs(folder: Path, root: Path) -> list[Path]:
    """The runs that trained what is in `folder`: itself, or those that it was merged or averaged from."""
    if (folder / TRAINED_ON).exists():
        return [folder]
    if not (folder / runs.MANIFEST).exists():
        raise Unfit(f"{folder} is not there, so nobody can tell what was trained on: bring it there")
    if runs.read_manifest(folder).stage not in MADE_OF_RUNS:
        raise Unfit(f"{folder} does not say what it was trained on")
    return [run for parent in runs.read_manifest(folder).parents for run in _training_runs(root / parent, root)]
