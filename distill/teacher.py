"""Score conversations with the fine-tuned teachers, both orders: python -m distill.teacher +exp=demo

That is what `make teacher-logits` runs. Each row is scored by the fold teachers that did not train on it
(`teacher.rows=out_of_fold`), and stored with the conversation's own a and b. The stage goes on where it was stopped:
parts that are written are never scored again.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import Config
from distill.door import door

if TYPE_CHECKING:
    from distill.records import Conversation
    from students.trained import TrainedJudge

log = logging.getLogger(__name__)


def main(config: Config) -> None:
    import shutil

    from distill import conversations, runs
    from students.trained import open_trained

    store = logits_folder(config)
    data, teachers = config.root / "data" / config.data.name, teacher_folders(config)
    identity = {
        "data": config.data.name,
        "limit": config.limit,
        "folds": config.teacher.folds,
        "rows": config.teacher.rows,
    }
    rows = conversations.load(data)[: config.limit]
    judges = [open_trained(folder, config.root, "train it first (role=teacher)") for folder in teachers]
    if config.overwrite:
        shutil.rmtree(store, ignore_errors=True)
    if runs.is_finished(store, "teacher", identity, [data, *teachers], config.root):
        log.info("%s is finished", store)
        return

    contents = runs.parent_contents([data, *teachers], config.root)
    written = 0
    for fold, judge in zip(config.teacher.folds, judges, strict=True):
        written += score_fold(config, store, fold, judge, rows, contents)
    if written == 0:
        raise ValueError(
            f"{store}: no row is out of fold for the teachers {config.teacher.folds}: "
            "add folds, or score in-fold with teacher.rows=all"
        )
    runs.write_manifest(
        store,
        "teacher",
        identity,
        [data, *teachers],
        config.root,
        rows={"logits": written},
        prompt=judges[0].renderer.hashes,
    )
    log.info("%s: %d rows", store, written)


def logits_folder(config: Config) -> Path:
    """logits/<teacher>, where the configured teacher's logits are. Raises `ValueError` where none is named."""
    if config.teacher.name is None:
        raise ValueError("teacher.name=null: name the teacher, as in teacher.name=llama70b")
    return config.root / "logits" / config.teacher.name


def teacher_folders(config: Config) -> list[Path]:
    """The fine-tuned fold teachers: teachers/<name>/fold=<k>, or below `teacher.path`."""
    parent = Path(config.teacher.path) if config.teacher.path else config.root / "teachers" / str(config.teacher.name)
    return [parent / f"fold={fold}" for fold in config.teacher.folds]


def score_fold(
    config: Config,
    store: Path,
    fold: int,
    judge: "TrainedJudge",
    rows: "list[Conversation]",
    contents: dict[str, str],
) -> int:
    """Score what the teacher of `fold` may score and has not yet; returns how many rows it has in the store."""
    import polars as pl

    from distill.records import ORDERS
    from distill.scoring import score_conversations
    from distill.store import STORE, LogitsWriter
    from teachers.scorers import open_scorer

    seen = judge.trained_on()
    own = [c for c in rows if config.teacher.rows == "all" or c.fingerprint() not in seen]
    writer = LogitsWriter(
        store, {"prompt": judge.renderer.hashes["prompt"], "dtype": config.teacher.scorer.dtype, **contents}
    )
    todo = [c for c in own if any((c.id, order, fold) not in writer.done for order in ORDERS)]
    if todo:
        log.info("teacher of fold %d scores %d of %d conversations", fold, len(todo), len(rows))
        in_sample = {c.id for c in todo if c.fingerprint() in seen}
        per_part = max(1, config.teacher.rows_per_part // len(ORDERS))
        with open_scorer(judge.merged(config.root), config.teacher.scorer, judge.max_tokens) as scorer:
            for start in range(0, len(todo), per_part):
                scores = score_conversations(scorer, judge.renderer, todo[start : start + per_part])
                flagged = pl.col("id").is_in(list(in_sample)).alias("in_sample")
                writer.append(scores.with_columns(pl.lit(fold, STORE["judge_fold"]).alias("judge_fold"), flagged))
    return len(own) * len(ORDERS)


if __name__ == "__main__":
    door(main)()
