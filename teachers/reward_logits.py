"""A reward model as a teacher: its scores of single responses, kept as they are, and the logits that they amount to."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.artefacts.building import Artefact
from core.errors import UserError
from core.labels import Labels
from core.models.folders import model_hash
from core.pointwise import choice_in
from core.provenance import Learned
from core.records import LABELS, ORDERS, TEST, Conversation
from core.store.parts import NO_FOLD
from core.store.reading import read_parts
from core.store.rows import REWARDS
from core.store.writing import StoreWriter
from teachers.bradley_terry import cross_fit
from teachers.config import TeacherConfig
from teachers.derived import write_derived
from teachers.rewards import RESPONSES, RenderedResponse, RewardRenderer, as_classifier
from teachers.scorers.backends import backend_of
from teachers.scorers.config import ScorerConfig
from teachers.scorers.opening import open_scorer
from teachers.scoring_run import not_done, scoring_run, store_identity

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardModel:
    """A reward model: its `source` folder, its content's hash, and where its form as a classifier is made."""

    source: Path
    content: str
    renderer: RewardRenderer
    classifier: Path

    @classmethod
    def at(cls, source: Path, max_tokens: int, models: Path) -> "RewardModel":
        """The model in `source`, shown prompts of up to `max_tokens` tokens; its classifier is made below `models`.

        Raises `UserError` for a pointwise judge, which reads its own prompts and knows what its rewards amount to.
        """
        if choice_in(source) is not None:
            raise UserError(
                f"teacher.model={source} is a pointwise judge of this project: ask it with teacher=model and the "
                "prompt that it was trained on, such as prompt=pointwise"
            )
        content = model_hash(source)
        return cls(source, content, RewardRenderer(source, max_tokens), models / f"reward-{content[:16]}")

    @property
    def hashes(self) -> dict[str, str]:
        return self.renderer.hashes


def score_responses(
    store: Path,
    model: RewardModel,
    rows: Sequence[Conversation],
    teacher: TeacherConfig,
    scorer: ScorerConfig,
    limit: int | None,
) -> None:
    """Score each response of `rows` alone into `store`, in `REWARDS`: those of the first `limit` rows."""
    identity = store_identity(model.hashes["prompt"], scorer.precision)
    with StoreWriter(store, identity, model.content, NO_FOLD, REWARDS) as writer:
        # What is scored already.
        in_order = sorted(rows[:limit], key=lambda c: (c.group, c.id))
        todo, done = not_done(in_order, writer, RESPONSES)
        by_id = {c.id: c for c in todo}

        def row(prompt: RenderedResponse, rewards: np.ndarray) -> dict[str, Any]:
            return {
                "id": prompt.id,
                "response": prompt.response,
                "rewards": rewards.tolist(),
                "prompt_tokens": len(prompt.ids),
                "truncated": prompt.truncated,
                "judge_fold": NO_FOLD,
                "fingerprint": by_id[prompt.id].sided_fingerprint(),
            }

        # The rest.
        with scoring_run(
            store,
            len(todo) * len(RESPONSES) - len(done),
            teacher.rows_per_part,
            draws_all=backend_of(scorer).draws_all,
            price_per_hour=teacher.price_per_hour,
            everything=None if limit is None else len(rows) * len(RESPONSES),
        ) as run:
            if todo:
                folder = as_classifier(model.source, model.classifier)
                with open_scorer(folder, scorer, model.renderer.max_tokens, judges=False) as opened:
                    prompts = (p for p in model.renderer.render(todo) if (p.id, p.response) not in done)
                    run.score(writer, opened, prompts, row)


def write_fitted(
    artefact: Artefact,
    rewards: Path,
    rows: Sequence[Conversation],
    l2: float,
    behind: Learned,
    hashes: Mapping[str, str],
    labels: Labels = LABELS,
) -> None:
    """The logits of `rows`, whose votes are for `labels`, from the store `rewards`, as a finished store.

    `behind`: what the reward model itself learned from, as far as it was made here. Each fold's fit learned from the
    votes of the others, none from the test split's. `l2` and the content of `rewards` are in the artefact's identity.
    """
    if artefact.is_finished():
        log.info("%s is finished", artefact.folder)
        return
    write_fit(artefact, read_parts(rewards), rows, l2, behind, hashes, labels)


def write_fit(
    artefact: Artefact,
    scored: pl.DataFrame,
    rows: Sequence[Conversation],
    l2: float,
    behind: Learned,
    hashes: Mapping[str, str],
    labels: Labels,
) -> None:
    """The same of rewards that are at hand, in `REWARDS`; `behind`: what gave them learned from."""
    logits = cross_fit(scored, rows, l2, labels)
    voted = [c for c in rows if c.votes and c.fold != TEST]
    seen = {fold: Learned.of(c for c in voted if c.fold != fold) | behind for fold in logits["judge_fold"].unique()}
    judges = dict(logits.select("id", "judge_fold").iter_rows())
    tokens = scored.group_by("id").agg(pl.col("prompt_tokens").max(), pl.col("truncated").any())
    texts = pl.DataFrame(
        [(c.id, c.sided_fingerprint(), c.fingerprint() in seen[judges[c.id]].directly) for c in rows],
        schema={"id": pl.String, "fingerprint": pl.UInt64, "in_sample": pl.Boolean},
        orient="row",
    )
    table = logits.join(tokens, on="id").join(texts, on="id").with_columns(outside=pl.lit(None))
    table = table.join(pl.DataFrame({"order": ORDERS}), how="cross")
    judge = artefact.identity.get("rewards", hashes["prompt"])
    write_derived(artefact, table, seen, hashes, judge, labels)
