"""Soft logits from judges: which of a teacher's models scores which rows, and their scoring."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import read_manifest
from core.errors import UserError
from core.labels import Labels, check_knows, labels_of, noted, shared
from core.models.folders import model_hash
from core.pointwise import Choice, check_kind
from core.prompts import PromptConfig, Rendered, Renderer, check_open
from core.provenance import Learned, behind_model
from core.records import LABELS, ORDERS, TEST, Conversation
from core.scoring import Scorer, scored_row
from core.store.parts import NO_FOLD
from core.store.rows import LOGITS
from core.store.seen import write_seen
from core.store.writing import StoreWriter
from teachers.config import TeacherConfig
from teachers.scorers.backends import backend_of
from teachers.scorers.config import ScorerConfig
from teachers.scorers.opening import open_scorer
from teachers.scoring_run import ScoringRun, not_done, scoring_run, store_identity

log = logging.getLogger(__name__)
LIMIT = "limit"  # in a manifest's `extra`: only the rows of so many conversations are there


@dataclass(frozen=True)
class TeacherModel:
    """One model of a teacher.

    `content` tells it from any other; `learned`: what it learned from, `labels`: and what could be voted for there;
    `folders()`: its folder, made ready when it is asked for, and an adapter that is served beside it. `choice`: how
    the rewards of a pointwise judge become logits, where its folder need not tell.
    """

    content: str
    fold: int
    learned: Learned
    labels: Labels
    renderer: Renderer
    tokenizer: Path
    folders: Callable[[], tuple[Path, Path | None]]
    choice: Choice | None = None

    def asked_tokens(self, teacher: TeacherConfig) -> list[str] | None:
        """The next tokens that the model is asked for; None where its score head is read.

        Raises `UserError` where its prompts show one response.
        """
        if teacher.method != "label_tokens":
            return None
        if self.renderer.pointwise:
            raise UserError(
                "teacher.method=label_tokens asks which of two responses is better, and prompt.template shows one: "
                "give prompt=label_tokens"
            )
        return self.renderer.config.label_tokens


@dataclass(frozen=True)
class Share:
    """What one model has to score: the conversations `todo`, but for the (id, order) that are `done`."""

    model: TeacherModel
    writer: StoreWriter
    todo: list[Conversation]
    done: set[tuple[str, str]]

    @property
    def rows(self) -> int:
        return len(self.todo) * len(ORDERS) - len(self.done)


def ready_made_model(folder: Path, prompt: PromptConfig, by_label_tokens: bool) -> TeacherModel:
    """A language model, or a judge with a score head. One from elsewhere has seen none of the rows."""
    renderer = Renderer(prompt, folder)
    if by_label_tokens:
        check_open(renderer, "teacher.method=label_tokens", folder)
    else:
        check_kind(folder, renderer.pointwise)
    told = (model_hash(folder), NO_FOLD, behind_model(folder), labels_behind(folder), renderer, folder)
    return TeacherModel(*told, lambda: (folder, None))


def labels_behind(model: Path) -> Labels:
    """The labels of a model's folder, as far as it was made here; all three of a model from elsewhere."""
    if behind_model(model) == Learned():
        return LABELS
    places = (model, model.parent)  # a full tuning keeps its weights in a folder of its own below the run
    return shared(labels_of(read_manifest(p, verify=False)) for p in places if (p / MANIFEST).exists())


def write_judgements(
    artefact: Artefact,
    models: Sequence[TeacherModel],
    rows: Sequence[Conversation],
    labels: Labels,
    teacher: TeacherConfig,
    scorer: ScorerConfig,
    limit: int | None,
) -> None:
    """Score with each model the conversations that are its own, in an order in which shared prefixes are neighbours.

    `labels`: what people could vote for on `rows`. `limit`: only the first of these are scored, and the log tells what
    all would take. Raises `UserError` for a model that does not know ties where `rows` have them.
    """
    known = shared(model.labels for model in models)
    check_knows(artefact.folder, known, labels)
    store, limited = artefact.folder, {c.id for c in rows[:limit]}
    wanted = rows_of_each(models, sorted(rows, key=prefix_order), teacher)
    with ExitStack() as stack:
        # What is scored already, by whichever run.
        shares = []
        for model, own in zip(models, wanted, strict=True):
            identity = store_identity(model.renderer.hashes["prompt"], scorer.precision, model.asked_tokens(teacher))
            writer = stack.enter_context(StoreWriter(store, identity, model.content, model.fold, LOGITS))
            shares.append(Share(model, writer, *not_done([c for c in own if c.id in limited], writer, ORDERS)))

        # One model after the other.
        everything = sum(map(len, wanted)) * len(ORDERS)
        with scoring_run(
            store,
            sum(share.rows for share in shares),
            teacher.rows_per_part,
            draws_all=backend_of(scorer).draws_all,
            price_per_hour=teacher.price_per_hour,
            everything=None if limit is None else everything,
        ) as run:
            for share in shares:
                if share.todo and not run.interrupt.asked:
                    score_share(share, store, teacher, scorer, run)
        written = sum(len(share.writer.done) for share in shares)
    extra = noted(known) | ({} if written == everything else {LIMIT: limit})
    artefact.finish(rows={"logits": written}, prompt=models[0].renderer.hashes, extra=extra)
    log.info("%s: %d rows", store, written)


def rows_of_each(
    models: Sequence[TeacherModel], rows: Sequence[Conversation], teacher: TeacherConfig
) -> list[list[Conversation]]:
    """What each model scores, as `teacher.rows` says. Raises `UserError` where that is nothing."""
    shares = [list(rows)] * len(models) if teacher.rows == "in_fold" else out_of_fold(models, rows)
    if not any(shares):
        raise UserError(
            f"no row is out of fold for the teachers {teacher.folds}: "
            "add folds, or score in-fold with teacher.rows=in_fold"
        )
    return shares


def out_of_fold(models: Sequence[TeacherModel], rows: Sequence[Conversation]) -> list[list[Conversation]]:
    """What each model scores: the rows that it was not trained on.

    The test split, from which no model has learned, is divided among them. So there, too, a row with votes has one
    judge: its figures are those of single teachers, and cost no more than the other rows'.
    """
    shares: list[list[Conversation]] = [[] for _ in models]
    for c in rows:
        fingerprint = c.fingerprint()
        for place, model in enumerate(models):
            others = c.fold == TEST and fingerprint % len(models) != place
            if fingerprint not in model.learned.directly and not others:
                shares[place].append(c)
    return shares


def prefix_order(conversation: Conversation) -> tuple[object, ...]:
    """Sorts conversations so that prompts with a long common beginning are neighbours, whatever their length."""
    return conversation.group, conversation.prompt, conversation.id


def score_share(share: Share, store: Path, teacher: TeacherConfig, scorer: ScorerConfig, run: ScoringRun) -> None:
    """Make a model ready, open its scorer and score its share."""
    model = share.model
    write_seen(store, model.fold, model.learned)
    who = "the teacher" if model.fold == NO_FOLD else f"the teacher of fold {model.fold}"
    log.info("%s scores %d conversations", who, len(share.todo))
    folder, adapter = model.folders() if backend_of(scorer).loads_model else (model.tokenizer, None)
    with open_scorer(
        folder,
        scorer,
        model.renderer.config.max_tokens,
        choice=model.choice,
        label_tokens=model.asked_tokens(teacher),
        adapter=adapter,
        fold=model.fold if model.fold >= 0 else None,
    ) as opened:
        score_conversations(share, opened, run, by_label_tokens=teacher.method == "label_tokens")


def score_conversations(share: Share, scorer: Scorer, run: ScoringRun, by_label_tokens: bool) -> None:
    """Score both orders of a share's conversations, but for what is done."""
    by_id, model = {c.id: c for c in share.todo}, share.model

    def row(prompt: Rendered, logits: np.ndarray) -> dict[str, Any]:
        conversation = by_id[prompt.id]
        return {
            **scored_row(prompt, logits),
            "judge_fold": model.fold,
            "in_sample": conversation.fingerprint() in model.learned.directly,
            "fingerprint": conversation.sided_fingerprint(),
            # The log-probabilities are over the whole vocabulary: what the three leave over went to other answers.
            "outside": max(0.0, 1.0 - float(np.exp(logits.astype(float)).sum())) if by_label_tokens else None,
        }

    prompts = (p for p in model.renderer.render(share.todo) if (p.id, p.order) not in share.done)
    run.score(share.writer, scorer, prompts, row)
