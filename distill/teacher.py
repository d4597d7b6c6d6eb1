"""Write a teacher's soft logits for every conversation in both orders: python -m distill.teacher +exp=demo

That is what `make teacher-logits` runs. `teacher.kind` says who the teacher is: fine-tuned `folds`, of which each row
is scored by those that did not train on it; one ready-made `model`; a `reward` model; or a `mixture` of stored
teachers. Logits are stored with the conversation's own a and b. The stage goes on where it was stopped, by a kill, a
Ctrl-C, a full disk, or `limit=200`, which ends with the time that all rows would take: what is written is never
scored again.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    import numpy as np

    from core.prompts import Rendered, Renderer
    from core.provenance import Learned
    from core.records import Conversation
    from core.scoring import Scorer
    from core.store.writing import StoreWriter
    from students.trained import TrainedJudge
    from teachers.scoring_run import Interrupt, Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judge:
    """One model of the teacher. `learned`: what it learned from; `model()`: its folder, and an adapter that is served
    beside it.
    """

    name: str
    fold: int
    learned: "Learned"
    renderer: "Renderer"
    tokenizer: Path
    model: Callable[[], tuple[Path, Path | None]]


def main(config: Config) -> None:
    from core.data.table import load_conversations
    from core.store.parts import clear

    store = logits_folder(config)
    rows = load_conversations(config.root / "data" / config.data.name)
    if config.overwrite:
        clear(store)
    if config.teacher.kind == "mixture":
        from teachers.mixtures import write_mixture

        write_mixture(config, store, rows[: config.limit])
    elif config.teacher.kind == "reward":
        from teachers.reward_logits import write_rewards

        write_rewards(config, store, rows)
    else:
        judges = fold_judges(config) if config.teacher.kind == "folds" else [ready_made_judge(config)]
        write_judgements(config, store, judges, rows)


def logits_folder(config: Config) -> Path:
    """logits/<teacher>, where the configured teacher's logits are. Raises `UserError` where none is named."""
    if config.teacher.name is None:
        raise UserError("teacher.name=null: name the teacher, as in teacher.name=llama70b")
    return config.root / "logits" / config.teacher.name


def teacher_folders(config: Config) -> list[Path]:
    """The fine-tuned fold teachers: teachers/<name>/fold=<k>, or below `teacher.path`."""
    parent = Path(config.teacher.path) if config.teacher.path else config.root / "teachers" / str(config.teacher.name)
    return [parent / f"fold={fold}" for fold in config.teacher.folds]


def fold_judges(config: Config) -> list[Judge]:
    """The fine-tuned teachers of `teacher.folds`."""
    from students.trained import open_trained

    if not config.teacher.folds:
        raise UserError("teacher.folds=[]: name the folds whose teachers score, as in teacher.folds=[0,1,2]")

    def judge(fold: int, trained: "TrainedJudge") -> Judge:
        def model() -> tuple[Path, Path | None]:
            return (trained.merged(config.root), None) if config.teacher.merge else trained.unmerged(config.root)

        return Judge(trained.manifest.content, fold, trained.learned(), trained.renderer, trained.base, model)

    opened = [open_trained(f, config.root, "train it first (role=teacher)") for f in teacher_folders(config)]
    return [judge(fold, trained) for fold, trained in zip(config.teacher.folds, opened, strict=True)]


def ready_made_judge(config: Config) -> Judge:
    """`teacher.model`: a language model, or a judge with a score head. One from elsewhere has seen none of the rows."""
    from core.models.folders import model_hash
    from core.models.resolving import resolve
    from core.prompts import Renderer
    from core.provenance import behind_model
    from core.store.parts import NO_FOLD

    folder = resolve(config.teacher.model, config.root, key="teacher.model")
    renderer = Renderer(config.prompt, folder)
    if config.teacher.method == "label_tokens" and renderer.closed:
        raise UserError(
            f"teacher.method=label_tokens with {folder}: its tokenizer puts an end-of-text token after every "
            "prompt, where the verdict should follow; take out its post-processor's end, or another model"
        )
    learned = behind_model(folder)
    return Judge(model_hash(folder), NO_FOLD, learned, renderer, folder, lambda: (folder, None))


def write_judgements(config: Config, store: Path, judges: Sequence[Judge], rows: "Sequence[Conversation]") -> None:
    """Score with each judge the conversations that are its own, in an order in which shared prefixes are neighbours."""
    from core.artefacts.building import Artefact
    from core.records import ORDERS
    from core.store.parts import NO_FOLD
    from core.store.rows import LOGITS
    from core.store.seen import write_seen
    from teachers.scoring_run import not_done, open_writer, scoring_run

    by_prompt = sorted(rows, key=prefix_order)
    limited = {c.id for c in rows[: config.limit]}
    shares = [by_prompt] * len(judges) if config.teacher.rows == "in_fold" else out_of_fold(judges, by_prompt)
    if not any(shares):
        raise UserError(
            f"{store}: no row is out of fold for the teachers {config.teacher.folds}: "
            "add folds, or score in-fold with teacher.rows=in_fold"
        )
    data = config.root / "data" / config.data.name
    parents = [data, *(teacher_folders(config) if judges[0].fold != NO_FOLD else [])]
    identity = {"rows": config.teacher.rows, "judges": {str(judge.fold): judge.name for judge in judges}}
    with ExitStack() as stack:
        work = []
        for judge, share in zip(judges, shares, strict=True):
            writer = stack.enter_context(
                open_writer(config, store, judge.renderer.hashes, judge.name, judge.fold, LOGITS)
            )
            todo, done = not_done([c for c in share if c.id in limited], writer, ORDERS)
            work.append((judge, writer, todo, done))
        scored = sum(len(todo) * len(ORDERS) - len(done) for *_, todo, done in work)
        everything = sum(map(len, shares)) * len(ORDERS)
        with scoring_run(config, store, scored, everything) as (progress, interrupt):
            for judge, writer, todo, done in work:
                if todo and not interrupt.asked:
                    write_seen(store, judge.fold, judge.learned)
                    who = "the teacher" if judge.fold == NO_FOLD else f"the teacher of fold {judge.fold}"
                    log.info("%s scores %d conversations", who, len(todo))
                    with open_judge(config, judge) as scorer:
                        fill_store(config, judge, writer, scorer, todo, done, progress, interrupt)
        rows_there = {"logits": sum(len(writer.done) for _, writer, *_ in work)}
    artefact = Artefact(store, "teacher", identity, parents, config.root)
    artefact.finish(rows=rows_there, prompt=judges[0].renderer.hashes)
    log.info("%s: %d rows", store, rows_there["logits"])


def out_of_fold(judges: Sequence[Judge], rows: "Sequence[Conversation]") -> "list[list[Conversation]]":
    """What each judge scores: the rows that it was not trained on.

    Of those of the test split, from which no judge has learned, each has a part, so that there, too, a row with votes
    has one judge: their figures are those of single teachers, and cost no more than the other rows'.
    """
    from core.records import TEST

    shares: list[list[Conversation]] = [[] for _ in judges]
    for c in rows:
        fingerprint = c.fingerprint()
        for place, judge in enumerate(judges):
            others = c.fold == TEST and fingerprint % len(judges) != place
            if fingerprint not in judge.learned.directly and not others:
                shares[place].append(c)
    return shares


def prefix_order(conversation: "Conversation") -> tuple[object, ...]:
    """Sorts conversations so that prompts with a long common beginning are neighbours, whatever their length."""
    return conversation.group, conversation.prompt, conversation.id


def open_judge(config: Config, judge: Judge) -> "AbstractContextManager[Scorer]":
    """The scorer of one judge, with its model made ready first."""
    from teachers.scorers.config import ServerConfig
    from teachers.scorers.opening import open_scorer

    model, adapter = (judge.tokenizer, None) if isinstance(config.scorers.teacher, ServerConfig) else judge.model()
    fold = judge.fold if judge.fold >= 0 else None
    return open_scorer(
        model,
        config.scorers.teacher,
        judge.renderer.config.max_tokens,
        label_tokens=config.teacher.labels if config.teacher.method == "label_tokens" else None,
        adapter=adapter,
        fold=fold,
    )


def fill_store(
    config: Config,
    judge: Judge,
    writer: "StoreWriter",
    scorer: "Scorer",
    todo: "list[Conversation]",
    done: set[tuple[str, str]],
    progress: "Progress",
    interrupt: "Interrupt",
) -> None:
    """Score both orders of `todo` with one judge's scorer, but for what is `done`."""
    import numpy as np

    from core.scoring import scored_row
    from teachers.scorers.config import RayConfig
    from teachers.scoring_run import fill

    by_id = {c.id: c for c in todo}
    labelled = config.teacher.method == "label_tokens"

    def row(prompt: "Rendered", logits: "np.ndarray") -> dict[str, Any]:
        conversation = by_id[prompt.id]
        return {
            **scored_row(prompt, logits),
            "judge_fold": judge.fold,
            "in_sample": conversation.fingerprint() in judge.learned.directly,
            "fingerprint": conversation.sided_fingerprint(),
            # The log-probabilities are over the whole vocabulary: what the three leave over went to other answers.
            "outside": max(0.0, 1.0 - float(np.exp(logits.astype(float)).sum())) if labelled else None,
        }

    prompts = (p for p in judge.renderer.render(todo) if (p.id, p.order) not in done)
    fill(
        writer,
        scorer,
        prompts,
        row,
        config.teacher.rows_per_part,
        progress,
        interrupt,
        isinstance(config.scorers.teacher, RayConfig),
    )


if __name__ == "__main__":
    entry_point(main)()
