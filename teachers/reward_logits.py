"""A reward model as a teacher: its scores of single responses, kept as they are, and the logits that they amount to."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from core.artefacts.building import Artefact
from core.artefacts.contents import content_hash
from core.models.folders import model_hash
from core.models.resolving import resolve
from core.provenance import Learned, behind_model
from core.records import ORDERS, TEST, Conversation
from core.store.parts import NO_FOLD
from core.store.reading import read_parts
from core.store.rows import REWARDS
from distill.config import Config
from teachers.bradley_terry import cross_fit
from teachers.derived import write_derived
from teachers.rewards import RESPONSES, RewardRenderer, as_classifier
from teachers.scorers.config import RayConfig
from teachers.scorers.opening import open_scorer
from teachers.scoring_run import fill, not_done, open_writer, scoring_run

log = logging.getLogger(__name__)


def write_rewards(config: Config, store: Path, rows: Sequence[Conversation]) -> None:
    """Score each response alone into rewards/<name>; map that to logits by a model fitted on the other folds' votes."""
    source = resolve(config.teacher.model, config.root, key="teacher.model")
    judge, renderer = model_hash(source), RewardRenderer(source, config.prompt.max_tokens)
    raw = config.root / "rewards" / store.name
    limited = rows[: config.limit]
    with open_writer(config, raw, renderer.hashes, judge, NO_FOLD, REWARDS) as writer:
        todo, done = not_done(sorted(limited, key=lambda c: (c.group, c.id)), writer, RESPONSES)
        by_id = {c.id: c for c in todo}
        count = len(todo) * len(RESPONSES) - len(done)
        with scoring_run(config, raw, count, len(rows) * len(RESPONSES)) as (progress, interrupt):
            if todo:
                model = as_classifier(source, config.root / "models" / f"reward-{judge[:16]}")
                with open_scorer(model, config.scorers.teacher, config.prompt.max_tokens, labels=None) as scorer:
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
                        config.teacher.rows_per_part,
                        progress,
                        interrupt,
                        isinstance(config.scorers.teacher, RayConfig),
                    )
    write_fitted(config, store, raw, limited, behind_model(source), renderer.hashes)


def write_fitted(
    config: Config,
    store: Path,
    raw: Path,
    rows: Sequence[Conversation],
    behind: Learned,
    hashes: Mapping[str, str],
) -> None:
    """The logits of `rows` from the rewards in the store `raw`, as a finished store of soft logits.

    `behind`: what the reward model itself learned from, as far as it was made here. Each fold's fit learned from the
    votes of the others, none from the test split's.
    """
    rewards, content = read_parts(raw), content_hash(raw)
    data = config.root / "data" / config.data.name
    identity = {"l2": config.teacher.reward_l2, "rewards": content, "limit": config.limit}
    artefact = Artefact(store, "teacher", identity, [data], config.root)
    if artefact.is_finished():
        log.info("%s is finished", store)
        return
    logits = cross_fit(rewards, rows, config.teacher.reward_l2)
    voted = [c for c in rows if c.votes and c.fold != TEST]
    seen = {fold: Learned.of(c for c in voted if c.fold != fold) | behind for fold in logits["judge_fold"].unique()}
    judges = dict(logits.select("id", "judge_fold").iter_rows())
    tokens = rewards.group_by("id").agg(pl.col("prompt_tokens").max(), pl.col("truncated").any())
    texts = pl.DataFrame(
        [(c.id, c.sided_fingerprint(), c.fingerprint() in seen[judges[c.id]].directly) for c in rows],
        schema={"id": pl.String, "fingerprint": pl.UInt64, "in_sample": pl.Boolean},
        orient="row",
    )
    table = logits.join(tokens, on="id").join(texts, on="id").with_columns(outside=pl.lit(None))
    table = table.join(pl.DataFrame({"order": ORDERS}), how="cross")
    write_derived(config, artefact, table, seen, hashes, content)
