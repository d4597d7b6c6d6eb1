"""The judges of one experiment, each as predictions for the same conversations in both orders.

Which artefacts may judge is known before any is asked (`candidates`), and what a model answered is kept
(`eval.answers`): an evaluation that was killed goes on, and one that a judge is added to asks no other again.

A judge that was trained on one of the conversations is refused. One whose teachers were is told from one that holds
them out: how many its teachers have seen stands beside its figures.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import polars as pl

from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import changed_parents, read_manifest
from core.data.file_kinds import seems
from core.errors import UserError
from core.exported import open_exported
from core.naming import split_overrides, variant
from core.prompts import Renderer, renderer_of
from core.provenance import read_learned
from core.records import ORDERS, Conversation
from core.scoring import SCORES, mean_logits
from core.store.reading import read_logits
from core.store.seen import read_seen
from core.tables import read_parquet
from distill.config import Config
from eval import baselines
from eval.answers import answers
from eval.leaderboard import bradley_terry
from eval.recalibration import IDENTITY, Recalibration, read_recalibration
from eval.seeds import STUDENT
from students.trained import open_trained
from teachers.scorers.config import ScorerConfig, VllmConfig, through_transformers

log = logging.getLogger(__name__)
NO_TEACHER = "loss=votes"
BASELINES = ("prior", "surface", "bradley_terry")
HISTORY = "history.parquet"


class Unfit(UserError):
    """Why an artefact cannot judge these conversations."""


class Unanswered(Unfit):
    """Why an export that may judge them gave no answer on this machine."""


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


class Said(NamedTuple):
    """A judge's answers (`SCORES`), and of how many of these conversations its teachers, or theirs, saw the votes.

    `alike`: how many look the same to it in both orders, most of them cut where they differ; None where its prompts are
    not known. `failed`: what is wrong with the engine that computed them.
    """

    scores: pl.DataFrame
    taught: int | None
    alike: int | None = None
    failed: Sequence[str] = ()


@dataclass
class Judges:
    """What each judge said (`SCORES`, the baselines without lengths), and the artefact that it comes from.

    `taught`: how many of the scored conversations its teachers learned from; None where nobody can tell. `alike`: how
    many look the same to it in both orders; None where its prompts are not known.
    `recalibrations` are those beside exports; `failed` says which checks an export failed, its engine's among them;
    `unanswered` why an export that is not among the judges gave no answer here.
    """

    predictions: dict[str, pl.DataFrame] = field(default_factory=dict)
    artefacts: dict[str, Path] = field(default_factory=dict)
    taught: dict[str, int | None] = field(default_factory=dict)
    alike: dict[str, int | None] = field(default_factory=dict)
    recalibrations: dict[str, Recalibration] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)


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
    config: Config, found: Sequence[Candidate], scored: Sequence[Conversation], training: Sequence[Conversation]
) -> Judges:
    """The baselines, and every candidate that is fit. Raises `UserError` where the student is not, or a named one."""
    judges = Judges()
    judges.predictions |= {
        "prior": baselines.prior(training, scored),
        "surface": baselines.surface(training, scored),
    }
    if any(c.model_a and c.model_b for c in scored):
        judges.predictions["bradley_terry"] = bradley_terry(training, scored)
    judges.taught |= dict.fromkeys(judges.predictions, 0)
    for candidate in found:
        try:
            add(judges, candidate, config, scored)
        except Unfit as reason:
            if candidate.named or candidate.name == STUDENT:
                raise
            if isinstance(reason, Unanswered):
                judges.unanswered[candidate.name] = str(reason)
            log.warning("%s left out: %s", candidate.name, reason)
    return judges


def add(judges: Judges, candidate: Candidate, config: Config, scored: Sequence[Conversation]) -> None:
    """Ask a candidate. Raises `Unfit` where it is not there, does not cover the conversations, or has learned them."""
    path = candidate.path
    if candidate.stage != "predictions" and not (path / MANIFEST).exists():
        raise Unfit(f"{path} is not there" + (f" ({candidate.remedy})" if candidate.remedy else ""))
    frame, taught, alike, failed = READERS[candidate.stage](candidate, config, scored)
    counts = frame.filter(pl.col("id").is_in([c.id for c in scored])).group_by("id").agg(pl.col("order").n_unique())
    if lacking := len(scored) - len(counts.filter(pl.col("order") == len(ORDERS))):
        raise Unfit(f"{path} lacks {lacking} of {len(scored)} conversations, judged in both orders")
    judges.predictions[candidate.name], judges.taught[candidate.name] = frame, taught
    judges.alike[candidate.name] = alike
    judges.artefacts[candidate.name] = candidate.artefact
    if candidate.stage == "export":
        judges.failed[candidate.name] = [*read_manifest(path).extra.get("failed", []), *failed]
        if (recalibration := read_recalibration(path)) != IDENTITY:
            judges.recalibrations[candidate.name] = recalibration


def judge_seeds(config: Config, scored: Sequence[Conversation]) -> dict[str, list[Said]]:
    """What the student and each of `eval.variants` say, by name, for each of `eval.seeds`."""
    found: dict[str, list[Said]] = {name: [] for name in (STUDENT, *config.eval.variants)}
    for seed in config.eval.seeds:
        run = config.run if seed == config.seed else variant(config.run, f"seed={seed}")
        for name, said in found.items():
            overrides = [] if name == STUDENT else split_overrides(name)
            folder = config.root / "students" / variant(run, *overrides) / f"fold={config.fold}"
            if not (folder / MANIFEST).exists():
                raise UserError(
                    f"eval.seeds={config.eval.seeds}: {name} of seed {seed} is missing; train it first: "
                    f"python -m distill.student +exp={config.name} {' '.join([f'seed={seed}', *overrides])}"
                )
            said.append(_trained(Candidate(name, folder, "student"), config, scored))
    return found


def _exports(config: Config) -> list[Path]:
    """The finished exports of this run, those of other folds and averages among them: whether they are fit is seen."""
    manifests = sorted((config.root / "exports" / config.run).glob(f"*/{MANIFEST}"))
    return [path.parent for path in manifests if read_manifest(path.parent, verify=False).stage == "export"]


def _named(name: str, path: str) -> Candidate:
    """The candidate of an entry of `eval.judges`, by what lies at its path."""
    place = Path(path)
    if place.is_file():
        return Candidate(name, place, "predictions", named=True)
    stage = read_manifest(place).stage
    if stage not in READERS:
        known = "a trained run, an export, a logits store or a predictions.parquet"
        raise UserError(f"eval.judges.{name}={path}: stage {stage!r} leaves no judge; give {known}")
    return Candidate(name, place, stage, named=True)


def _stored(candidate: Candidate, config: Config, scored: Sequence[Conversation]) -> Said:
    """What a store holds of the rows that its judges were not trained on, the mean over judges."""
    logits = read_logits(candidate.path, candidate.remedy)
    own = pl.DataFrame(
        [(c.id, c.sided_fingerprint(), c.fingerprint()) for c in scored],
        schema={"id": pl.String, "text": pl.UInt64, "conversation": pl.UInt64},
        orient="row",
    )
    logits = logits.filter(~pl.col("in_sample")).join(own, on="id")
    if other := len(logits.filter(pl.col("fingerprint") != pl.col("text"))):
        raise Unfit(f"{candidate.path} holds {other} judgements of other texts under the ids that are scored")
    seen = read_seen(candidate.path, logits["judge_fold"].unique())
    seen = seen.select("judge_fold", pl.col("fingerprint").alias("conversation"))
    taught = logits.join(seen, on=["judge_fold", "conversation"], how="semi")["id"].n_unique()
    lengths = pl.col("prompt_tokens", "truncated").first()
    averaged = logits.group_by("id", "order", maintain_order=True).agg(mean_logits(), lengths)
    return Said(averaged.cast(SCORES), taught)


def _trained(candidate: Candidate, config: Config, scored: Sequence[Conversation]) -> Said:
    """The answers of a trained run."""
    judge = open_trained(candidate.path, config.root, candidate.remedy)
    taught = _taught(candidate.path, scored)
    model = judge.merged(config.root)
    said, _ = answers(model, judge.manifest.content, judge.renderer, config.scorers.student, scored, config.root)
    return Said(said, taught, count_alike(judge.renderer, scored))


def _exported(candidate: Candidate, config: Config, scored: Sequence[Conversation]) -> Said:
    """The answers of an export, through the engine that it is meant for; one that failed its checks answers, too."""
    path, root = candidate.path, config.root
    manifest = read_manifest(path)
    if candidate.named:
        renderer = open_exported(path).renderer
    else:
        if changed := changed_parents(manifest, root):
            raise UserError(f"{path} was exported from another {changed[0]}: export it with overwrite=true")
        renderer = renderer_of(manifest, path, path)
    taught = _taught(path, scored)
    scorer = _engine(manifest.config["export"]["format"], config.scorers.exported)
    try:
        said, failed = answers(path, manifest.content, renderer, scorer, scored, root, config.canaries.on_failure)
    except UserError as error:
        raise Unanswered(str(error)) from error
    return Said(said, taught, count_alike(renderer, scored), failed)


def _predicted(candidate: Candidate, config: Config, scored: Sequence[Conversation]) -> Said:
    """A file of `id`, `order` and `logits` in the conversation's own a and b; of several judges, the student's.

    It does not say what its judge learned from.
    """
    try:
        frame = read_parquet(candidate.path)
    except UserError as error:
        kind = seems(candidate.path, set()) or "is damaged, or no parquet"
        raise UserError(f"{candidate.path} {kind}; a judge is a predictions.parquet, as eval writes it") from error
    if missing := {"id", "order", "logits"} - set(frame.columns):
        raise Unfit(f"{candidate.path} has no columns {sorted(missing)}, only {frame.columns}")
    if "judge" in frame.columns and frame["judge"].n_unique() > 1:
        frame = frame.filter(judge=STUDENT)
    try:
        said = frame.select(pl.col(name).cast(kind) for name, kind in SCORES.items() if name in frame.columns)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{candidate.path} holds {frame.schema}, expected {SCORES} ({error})") from error
    return Said(said, None)


READERS = {"teacher": _stored, "student": _trained, "export": _exported, "predictions": _predicted}


def _engine(format: str, scorer: ScorerConfig) -> ScorerConfig:
    """The scorer for a format: without a GPU vLLM runs w8a8 alone, and transformers the others."""
    import torch

    if not isinstance(scorer, VllmConfig) or format == "w8a8" or torch.cuda.is_available():
        return scorer
    if format == "gptq":
        raise Unfit("without a GPU nothing reads the GPTQ layout; w8a16 has the same weights")
    return through_transformers(scorer)


def count_alike(renderer: Renderer, conversations: Sequence[Conversation]) -> int:
    """Of how many conversations both orders give one prompt, so that a judge cannot tell a from b."""
    shown = list(renderer.render(conversations))
    return sum(ab.ids == ba.ids for ab, ba in zip(shown[::2], shown[1::2], strict=True))


def _taught(folder: Path, scored: Sequence[Conversation]) -> int:
    """Of how many of the scored conversations the teachers behind `folder` saw the votes.

    Raises `Unfit` where it was itself trained on one of them, chose checkpoints by one, or nobody can tell.
    """
    try:
        learned = read_learned(folder)
    except UserError as error:
        raise Unfit(str(error)) from error
    fingerprints = [c.fingerprint() for c in scored]
    if leaked := sum(f in learned.directly for f in fingerprints):
        raise Unfit(f"{folder} was trained on {leaked} of the {len(scored)} conversations that are scored")
    return sum(f in learned.through_teachers for f in fingerprints)
