"""A reward model as a teacher: its scores of single responses, kept as they are, and the logits that they amount to."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from distill import models, runs
from distill.config import Config
from distill.provenance import Learned, behind_model
from distill.records import ORDERS, TEST, Conversation
from distill.store import NO_FOLD, REWARDS, read_parts
from teachers.bradley_terry import cross_fit
from teachers.derived import write_derived
from teachers.filling import fill, not_done, open_writer, scoring_run
from teachers.rewards import RESPONSES, RewardRenderer, as_classifier
from teachers.scorers import open_scorer

log = logging.getLogger(__name__)


def write_rewards(config: Config, store: Path, rows: Sequence[Conversation]) -> None:
    """Score each response alone into rewards/<name>; map that to logits by a model fitted on the other folds' votes."""
    source = models.resolve(config.teacher.model, config.root, key="teacher.model")
    judge, renderer = models.digest(source), RewardRenderer(source, config.prompt.max_tokens)
    raw = config.root / "rewards" / store.name
    limited = rows[: config.limit]
    with open_writer(config, raw, renderer.hashes, judge, NO_FOLD, REWARDS) as writer:
        todo, done = not_done(sorted(limited, key=lambda c: (c.group, c.id)), writer, RESPONSES)
        by_id = {c.id: c for c in todo}
        count = len(todo) * len(RESPONSES) - len(done)
        with scoring_run(config, raw, count, len(rows) * len(RESPONSES)) as (progress, interrupt):
            if todo:
                model = as_classifier(source, config.root / "models" / f"reward-{judge[:16]}")
                scorer_config = replace(config.teacher.scorer, method="classify")
                with open_scorer(model, scorer_config, config.prompt.max_tokens, labels=None) as scorer:
                    prompts = (p for p in renderer.render(todo) if (p.id, p.response) not in done)
                    fill(
                        writer,
                        scorer,
                        prompts,
                        lambda p, rewards: {
                            "id": p.id,
                            "response": p.response,
                            "rewards": rewards.tolist(),
                            "prompt_tokens": len(p.ids),
                            "truncated": p.truncated,
                            "judge_fold": NO_FOLD,
                            "fingerprint": by_id[p.id].sided_fingerprint(),
                        },
                        config.teacher,
                        progress,
                        interrupt,
                    )
    rewards = read_parts(raw)
    data = config.root / "data" / config.data.name
    content = runs.content_hash(raw)
    identity = {"l2": config.teacher.reward_l2, "rewards": content, "limit": config.limit}
    if runs.is_finished(store, "teacher", identity, [data], config.root):
        log.info("%s is finished", store)
        return
    logits = cross_fit(rewards, limited, config.teacher.reward_l2)
    tokens = rewards.group_by("id").agg(pl.col("prompt_tokens").max(), pl.col("truncated").any())
    texts = pl.DataFrame(
        [(c.id, c.sided_fingerprint()) for c in limited],
        schema={"id": pl.String, "fingerprint": pl.UInt64},
        orient="row",
    )
    table = logits.join(tokens, on="id").join(texts, on="id").with_columns(in_sample=False, outside=pl.lit(None))
    table = table.join(pl.DataFrame({"order": ORDERS}), how="cross")
    folds = table["judge_fold"].unique().to_list()
    voted = [c for c in limited if c.votes and c.fold != TEST]
    behind = behind_model(source)
    seen = {fold: Learned.of(c for c in voted if c.fold != fold) | behind for fold in folds}
    write_derived(config, store, table, seen, identity, [data], renderer.hashes, content)
