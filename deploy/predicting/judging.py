"""Judging the conversations of a file in one or several processes, each with a share of them and an engine of its own.

First every conversation is judged in one order, then those that need it most in the other, while time lasts.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.exported import ExportedJudge, open_exported
from core.labels import among
from core.prompts import Rendered
from core.records import ORDERS, Conversation, Order
from core.scoring import SCORES, Scorer, logits_by_order, scored_row
from core.store.parts import part_files
from core.store.reading import read_parts
from core.store.writing import StoreWriter
from deploy.predicting.config import PredictConfig
from deploy.predicting.engine_notes import check_engine
from deploy.predicting.second_orders import by_need, chunks, draw_pilot, gains_where_sure
from deploy.predicting.unlabelled import Source, read_unlabelled
from eval.config import CanaryMode
from teachers.scorers.backends import backend_of
from teachers.scorers.config import ScorerConfig
from teachers.scorers.opening import open_scorer
from teachers.scoring_run import ScoringRun, scoring_run, store_identity

log = logging.getLogger(__name__)
JUDGED = pl.Schema({**SCORES, "process": pl.Int32(), "fingerprint": pl.UInt64()})


@dataclass(frozen=True)
class Judging:
    """What each process is told: the `source` to judge, the export's folder `model`, and `parts`, where scores go.

    `deadline`: when no more second orders are begun, in seconds since the epoch.
    """

    source: Source
    model: Path
    parts: Path
    scorer: ScorerConfig
    settings: PredictConfig
    canaries: CanaryMode
    deadline: float | None


def read_scores(parts: Path) -> pl.DataFrame:
    """All that is judged, one row an id and order, whichever process judged it; empty where there is nothing yet."""
    found = read_parts(parts) if part_files(parts) else pl.DataFrame(schema=JUDGED)
    return found.unique(["id", "order"], keep="first", maintain_order=True)


@dataclass(frozen=True)
class Share:
    """The conversations of one process, in an order in which prompts with a common beginning are neighbours.

    `quota` of them are to be judged in both orders; `there` holds (id, order) of all that is judged.
    """

    conversations: list[Conversation]
    quota: int
    there: set[tuple[str, str]]

    def lacking(self, order: Order) -> list[Conversation]:
        """Those that are not judged in this order yet."""
        return [c for c in self.conversations if (c.id, order) not in self.there]

    def waiting(self) -> int:
        """How many judgements it takes to finish, both orders counted."""
        again = len(self.conversations) - len(self.lacking("ba"))
        return len(self.lacking("ab")) + max(0, self.quota - again)


def take_share(judging: Judging, number: int, count: int, *, pointwise: bool = False) -> Share:
    """Share `number` of `count` of the input's conversations; a `pointwise` judge's second orders cost nothing."""
    rows = sorted(read_unlabelled(judging.source).conversations, key=lambda c: (c.prompt, c.id))
    own = rows[len(rows) * number // count : len(rows) * (number + 1) // count]
    there = read_scores(judging.parts).select("id", "order")
    return Share(
        own, len(own) if pointwise else round(judging.settings.second_order * len(own)), set(there.iter_rows())
    )


def judge_share(number: int, count: int, judging: Judging) -> None:
    """What one process does: judge its share in the first order, then what it can in the second.

    It ends at once, without an engine, where nothing is left to do.
    """
    judge = open_exported(judging.model)
    share = take_share(judging, number, count, pointwise=judge.renderer.pointwise)
    waiting, settings = share.waiting(), judging.settings
    draws_all = backend_of(judging.scorer).draws_all
    identity = store_identity(judge.renderer.hashes["prompt"], judging.scorer.precision)
    with (
        StoreWriter(judging.parts, identity, judge.manifest.content, number, JUDGED) as writer,
        scoring_run(judging.parts, waiting, settings.rows_per_part, draws_all=draws_all) as run,
    ):
        if waiting:
            with open_scorer(judge.folder, judging.scorer, judge.max_tokens) as scorer:
                check_engine(judge, scorer, judging.canaries, judging.parts, number)
                work = ShareJudge(judge, share, writer, scorer, run)
                both = share.quota == len(share.conversations) and judging.deadline is None
                if both or judge.renderer.pointwise:
                    work.score(share.conversations, ORDERS)  # side by side the two share their question in the cache
                else:
                    work.score(share.lacking("ab"), ("ab",))
                    work.second_orders(settings.pilot, judging.deadline)


@dataclass(frozen=True)
class ShareJudge:
    """A share, and all that is needed to judge it."""

    judge: ExportedJudge
    share: Share
    writer: StoreWriter
    scorer: Scorer
    run: ScoringRun

    def score(self, conversations: Sequence[Conversation], orders: Sequence[Order]) -> None:
        """Judge `conversations` in `orders`, but for what is there, and write it down."""
        there, fingerprints = self.share.there, {c.id: c.sided_fingerprint() for c in conversations}

        def row(prompt: Rendered, logits: np.ndarray) -> dict[str, Any]:
            there.add((prompt.id, prompt.order))
            return {
                **scored_row(prompt, logits),
                "process": self.writer.origin.writer,
                "fingerprint": fingerprints[prompt.id],
            }

        done = frozenset(there)  # the renderer's thread reads it while rows are added
        rendered = (p for p in self.judge.renderer.render(conversations, orders) if (p.id, p.order) not in done)
        self.run.score(self.writer, self.scorer, rendered, row)

    def second_orders(self, pilot: int, deadline: float | None) -> None:
        """Judge up to the share's quota in the other order: a pilot, then those that it says need it most."""
        rows = self.share.conversations
        if self.run.interrupt.asked or not self.share.quota:
            return
        ids = [c.id for c in rows]
        scores = read_scores(self.writer.folder).filter(pl.col("order") == "ab")
        first = pl.DataFrame({"id": ids}).join(scores, on="id", how="left", maintain_order="left")
        tokens, logits = first["prompt_tokens"].to_numpy(), among(first["logits"].to_numpy(), self.judge.labels)
        drawn = draw_pilot(len(rows), self.share.quota, pilot)
        if not self._judge_again(drawn, tokens, deadline):
            return
        pairs = logits_by_order(read_scores(self.writer.folder), [ids[p] for p in drawn], self.judge.labels)
        where_sure = gains_where_sure(*pairs)
        log.info("second orders: the %s conversations first", "surest" if where_sure else "least sure")
        order = by_need(logits, where_sure)
        rest = order[~np.isin(order, drawn)]
        self._judge_again(rest[: self.share.quota - len(drawn)], tokens, deadline)

    def _judge_again(self, positions: np.ndarray, tokens: np.ndarray, deadline: float | None) -> bool:
        """Judge conversations in the other order, piece by piece; False where time or patience ended before that.

        A piece is begun only where, at the speed until now, it ends in time.
        """
        rows = self.share.conversations
        left = [p for p in positions if (rows[p].id, "ba") not in self.share.there]
        for piece in chunks(left, self.run.rows_per_part):
            progress = self.run.progress
            rate = progress.tokens / progress.seconds if progress.tokens else np.inf
            if deadline is not None and time.time() + tokens[piece].sum() / rate > deadline:
                log.info("the time budget is used up")
                return False
            self.score([rows[p] for p in sorted(piece)], ("ba",))
            if self.run.interrupt.asked:
                return False
        return True
