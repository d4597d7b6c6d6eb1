"""What a candidate answers: the same conversations in both orders, from wherever its kind keeps them.

A judge that was trained on one of the conversations is refused. One whose teachers were is told from one that holds
them out: how many its teachers have seen stands beside its figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from core import screen
from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import Manifest, changed_parents, read_manifest
from core.data.files.compression import HEAD
from core.data.files.kinds import seems
from core.errors import EngineDied, UserError
from core.exported import open_exported
from core.labels import Labels, check_knows, labels_of
from core.models.families import decoder_of, shape_in
from core.models.shapes import Shape, facts_of, folder_of
from core.prompts import Renderer, renderer_of
from core.provenance import UNTOLD, read_learned
from core.records import LABELS, ORDERS, Conversation
from core.scoring import SCORES, mean_logits
from core.store.reading import read_logits
from core.store.seen import read_seen
from core.tables import read_parquet
from eval.config import CanaryMode
from eval.conformal import Thresholds, read_thresholds
from eval.judges.candidates import STUDENT, Candidate
from eval.judges.predictions import predictions
from eval.recalibration import IDENTITY, Recalibration, read_recalibration
from students.export.config import FormatName
from students.export.formats import format_named
from students.trained import open_trained
from teachers.scorers.config import ScorerConfig


class Unfit(UserError):
    """Why an artefact cannot judge these conversations."""


class Unanswered(Unfit):
    """Why an export that may judge them gave no answer on this machine."""


@dataclass(frozen=True)
class Engines:
    """How models are asked: the scorers of trained runs and of exports, and what becomes of an export that this
    machine computes differently. What they answer is kept below `root`."""

    root: Path
    student: ScorerConfig
    exported: ScorerConfig
    canaries: CanaryMode


@dataclass(frozen=True)
class ModelSize:
    """The `shape` of the model that answered, and the `format` that it is in: all that its hours on a T4 depend on."""

    shape: Shape
    format: FormatName


@dataclass(frozen=True)
class Answers:
    """A judge's answers (`SCORES`, the baselines without lengths), and the artefact that it comes from.

    `taught`: of how many of the scored conversations its teachers, or theirs, saw the votes; None where nobody can
    tell. `alike`: how many have the same prompt in both orders; None where its prompts are not known. `failed`: which
    checks an export failed, its engine's among them. `pointwise`: each order shows one response, both are needed.
    `model`: None where it is not on this machine.
    """

    scores: pl.DataFrame
    taught: int | None
    alike: int | None = None
    failed: Sequence[str] = ()
    artefact: Path | None = None
    recalibration: Recalibration | None = None
    thresholds: Thresholds | None = None
    pointwise: bool = False
    model: ModelSize | None = None


def ask(candidate: Candidate, scored: Sequence[Conversation], engines: Engines, labels: Labels = LABELS) -> Answers:
    """Raises `Unfit` where the candidate is not there, does not cover the conversations, does not know the `labels` of
    their votes, or has learned them."""
    path = candidate.path
    if candidate.stage != "predictions" and not (path / MANIFEST).exists():
        raise Unfit(f"{path} is not there" + (f" ({candidate.remedy})" if candidate.remedy else ""))
    if candidate.stage != "predictions":  # which does not say what its judge knows
        try:
            check_knows(path, labels_of(read_manifest(path)), labels)
        except UserError as error:
            raise Unfit(str(error)) from error
    if candidate.stage == "teacher":
        answers = _stored(path, candidate.remedy, scored, engines.root)
    elif candidate.stage == "student":
        answers = _trained(path, candidate.remedy, scored, engines)
    elif candidate.stage == "export":
        answers = _exported(candidate, scored, engines)
    else:
        answers = _predicted(path)
    ids = [c.id for c in scored]
    orders = answers.scores.filter(pl.col("id").is_in(ids)).group_by("id").agg(pl.col("order").n_unique())
    if lacking := len(scored) - len(orders.filter(pl.col("order") == len(ORDERS))):
        raise Unfit(f"{path} lacks {lacking} of {len(scored)} conversations, judged in both orders")
    return replace(answers, artefact=candidate.artefact)


def _stored(store: Path, remedy: str, scored: Sequence[Conversation], root: Path) -> Answers:
    """What a store holds of the rows that its judges were not trained on, the mean over judges."""
    logits = read_logits(store, remedy)
    own = pl.DataFrame(
        [(c.id, c.sided_fingerprint(), c.fingerprint()) for c in scored],
        schema={"id": pl.String, "text": pl.UInt64, "conversation": pl.UInt64},
        orient="row",
    )
    logits = logits.filter(~pl.col("in_sample")).join(own, on="id")
    if other := len(logits.filter(pl.col("fingerprint") != pl.col("text"))):
        raise Unfit(f"{store} holds {other} judgements of other texts under the ids that are scored")
    seen = read_seen(store, logits["judge_fold"].unique())
    seen = seen.select("judge_fold", pl.col("fingerprint").alias("conversation"))
    taught: int | None = logits.join(seen, on=["judge_fold", "conversation"], how="semi")["id"].n_unique()
    taught = None if UNTOLD in seen["conversation"] else taught
    lengths = pl.col("prompt_tokens", "truncated").first()
    averaged = logits.group_by("id", "order", maintain_order=True).agg(mean_logits(), lengths)
    manifest = read_manifest(store)
    return Answers(
        averaged.cast(SCORES), taught, pointwise=_is_pointwise(manifest.prompt), model=_model_behind(manifest, root)
    )


def _model_behind(manifest: Manifest, root: Path) -> ModelSize | None:
    """The model of the first fold teacher that a store comes from; None where its base is not on this machine."""
    for place in manifest.parents:
        if (root / place / MANIFEST).exists():
            trained = read_manifest(root / place, verify=False).config.get("model", {})
            folder = folder_of(trained["base"], root) if "base" in trained else None
            if folder is not None and (decoder := decoder_of(facts_of(trained["base"], root), trained.get("layers"))):
                return ModelSize(decoder.shape, "merged")
    return None


def _is_pointwise(prompt: Mapping[str, str]) -> bool:
    """Whether a judge is shown one response at a time, by the hashes of its prompt."""
    return prompt.get("kind") == "pointwise"


def _trained(folder: Path, remedy: str, scored: Sequence[Conversation], engines: Engines) -> Answers:
    judge = open_trained(folder, engines.root, remedy)
    taught = _taught(folder, scored)
    model = judge.merged(engines.root)
    found = predictions(model, judge.manifest.content, judge.renderer, engines.student, scored, engines.root)
    return Answers(
        found.scores,
        taught,
        count_alike(judge.renderer, scored),
        pointwise=_is_pointwise(judge.renderer.hashes),
        model=ModelSize(shape_in(model), "merged"),
    )


def _exported(candidate: Candidate, scored: Sequence[Conversation], engines: Engines) -> Answers:
    """Through the engine that the export is meant for; one that failed its checks answers, too."""
    path = candidate.path
    manifest = read_manifest(path)
    if candidate.named:
        renderer = open_exported(path).renderer
    else:
        if changed := changed_parents(manifest, engines.root):
            raise UserError(f"{path} was exported from another {changed[0]}: export it with overwrite=true")
        renderer = renderer_of(manifest, path, path)
    taught = _taught(path, scored)
    scorer = _engine(manifest.config["export"]["format"], engines.exported)
    try:
        found = predictions(path, manifest.content, renderer, scorer, scored, engines.root, engines.canaries)
    except UserError as error:
        if isinstance(error, EngineDied):
            screen.last_words()  # the others go on, and this is where they say why it died
        raise Unanswered(str(error)) from error
    recalibration = read_recalibration(path)
    return Answers(
        found.scores,
        taught,
        count_alike(renderer, scored),
        failed=[*manifest.extra.get("failed", []), *found.failed],
        recalibration=None if recalibration == IDENTITY else recalibration,
        thresholds=read_thresholds(path),
        pointwise=_is_pointwise(renderer.hashes),
        model=ModelSize(shape_in(path), manifest.config["export"]["format"]),
    )


def _predicted(path: Path) -> Answers:
    """A file of `id`, `order` and `logits` in the conversation's own a and b; of several judges, the student's.

    It does not say what its judge learned from.
    """
    try:
        frame = read_parquet(path)
    except UserError as error:
        with path.open("rb") as file:
            kind = seems(file.read(HEAD)) or "is damaged, or no parquet"
        raise UserError(f"{path} {kind}; a judge is a predictions.parquet, as eval writes it") from error
    if missing := {"id", "order", "logits"} - set(frame.columns):
        raise Unfit(f"{path} has no columns {sorted(missing)}, only {frame.columns}")
    if "judge" in frame.columns and frame["judge"].n_unique() > 1:
        frame = frame.filter(judge=STUDENT)
    try:
        scores = frame.select(pl.col(name).cast(kind) for name, kind in SCORES.items() if name in frame.columns)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path} holds {frame.schema}, expected {SCORES} ({error})") from error
    return Answers(scores, taught=None)


def _engine(format: str, scorer: ScorerConfig) -> ScorerConfig:
    """The scorer for a format: transformers where vLLM cannot read it, for want of a GPU."""
    import torch

    try:
        row = format_named(format)
    except UserError as error:
        raise Unfit(str(error)) from error
    if not scorer.limited_on_cpus or row.vllm_on_cpus or torch.cuda.is_available():
        return scorer
    return scorer.in_transformers()


def count_alike(renderer: Renderer, conversations: Sequence[Conversation]) -> int:
    """Of how many conversations both orders give one prompt, so that a judge cannot tell a from b."""
    shown = list(renderer.render(conversations))
    return sum(ab.ids == ba.ids for ab, ba in zip(shown[::2], shown[1::2], strict=True))


def _taught(folder: Path, scored: Sequence[Conversation]) -> int | None:
    """Of how many of the scored conversations the teachers behind `folder` saw the votes; None where one is unknown.

    Raises `Unfit` where it was itself trained on one of them, chose checkpoints by one, or nobody can tell.
    """
    try:
        learned = read_learned(folder)
    except UserError as error:
        raise Unfit(str(error)) from error
    fingerprints = [c.fingerprint() for c in scored]
    if leaked := sum(f in learned.directly for f in fingerprints):
        raise Unfit(f"{folder} was trained on {leaked} of the {len(scored)} conversations that are scored")
    return sum(f in learned.through_teachers for f in fingerprints) if learned.is_known else None
