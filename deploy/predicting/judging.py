"""Judging the conversations of a file in one or several processes, each with a share of them and engines of its own.

First every conversation gets one opinion, then those that need it most a second: the other order of the same judge, or
the verdict of the next one. Engines are opened one after another, so that only one is in a device's memory.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from core.exported import ExportedJudge, open_exported
from core.labels import among
from core.models.families import shape_in
from core.prompts import Rendered
from core.records import Conversation, Order
from core.scoring import Scorer, scored_row
from core.store.writing import StoreWriter
from deploy.predicting.budget import Budget, Speed, noted_speed, speed_note, until
from deploy.predicting.cascade import JUDGED, Judge, read_scores
from deploy.predicting.config import PredictConfig
from deploy.predicting.engine_notes import check_engine
from deploy.predicting.unlabelled import Source, read_unlabelled
from eval.config import CanaryMode
from eval.recalibration import read_recalibration
from eval.second_opinions import Opinions, draw_pilot, expected_gain, in_turn
from teachers.scorers.backends import backend_of
from teachers.scorers.config import ScorerConfig
from teachers.scorers.opening import open_scorer
from teachers.scoring_run import ScoringRun, scoring_run, store_identity

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judging:
    """What each process needs to know: the `source` to judge, and the `judges`, in the order of asking.

    `deadline`: when no more second opinions are begun, in seconds since the epoch.
    """

    source: Source
    judges: Sequence[Judge]
    scorer: ScorerConfig
    settings: PredictConfig
    canaries: CanaryMode
    deadline: float | None


@dataclass(frozen=True)
class First:
    """The `opinions` that stand before a second one is asked for, and the conversations that they are of."""

    conversations: list[Conversation]
    opinions: Opinions


def judge_share(number: int, count: int, judging: Judging) -> None:
    """What process `number` of `count` does: its share of the conversations, judge after judge."""
    rows = sorted(read_unlabelled(judging.source).conversations, key=lambda c: (c.prompt, c.id))
    own = rows[len(rows) * number // count : len(rows) * (number + 1) // count]
    first, end, speed = None, judging.deadline, Speed()
    for turn, judge in enumerate(judging.judges):
        exported = open_exported(judge.folder)
        if turn and judging.deadline is not None:
            end = until(judging.deadline, len(judging.judges) - turn)
            before = shape_in(judging.judges[turn - 1].folder)
            speed = speed.of_larger(shape_in(judge.folder).matrices / before.matrices)
        budget = Budget(end, noted_speed(judge.parts) or speed, speed_note(judge.parts, number))
        ask(judge, exported, own, first, judging, number, budget)
        speed = budget.speed
        if judge is not judging.judges[-1]:
            first = opinions_of(judge, exported, own, len(judge.looks))


def ask(
    judge: Judge,
    exported: ExportedJudge,
    rows: list[Conversation],
    first: First | None,
    judging: Judging,
    number: int,
    budget: Budget,
) -> None:
    """Ask one judge: of all `rows` where nobody was asked before, else of those of `first` that need it most.

    No engine is opened that nothing is left for, or not the time for a pilot.
    """
    settings = judging.settings
    there = {*read_scores(judge.parts).select("id", "order").iter_rows()}
    if not (waiting := still_to_judge(judge, rows, first, settings.second_opinions, there)):
        return
    stands = first or standing(judge, exported, rows, there)
    if stands is not None and not lasts_for_pilot(judge, stands, settings, there, budget):
        return
    draws_all = backend_of(judging.scorer).draws_all
    identity = store_identity(exported.renderer.hashes["prompt"], judging.scorer.precision)
    began = time.time()
    with (
        StoreWriter(judge.parts, identity, exported.manifest.content, number, JUDGED) as writer,
        scoring_run(judge.parts, waiting, settings.rows_per_part, draws_all=draws_all) as run,
        open_scorer(exported.folder, judging.scorer, exported.max_tokens) as scorer,
    ):
        check_engine(exported, scorer, judging.canaries, judge.parts, number)
        budget.opened(began)
        work = ShareJudge(judge, exported, settings, there, writer, scorer, run, budget)
        for shown in range(1, len(judge.looks) + 1):
            if run.interrupt.asked:
                return
            if shown == 1 and first is None:
                work.first_opinions(rows)
            else:
                work.second_opinions(first or opinions_of(judge, exported, rows, shown - 1), shown)


def still_to_judge(
    judge: Judge, rows: Sequence[Conversation], first: First | None, share: float, there: set[tuple[str, str]]
) -> int:
    """How many judgements it takes to finish, each order counted; a `share` of what stands gets a second opinion."""
    candidates = rows if first is None else first.conversations
    total = 0
    for look, orders in enumerate(judge.looks):
        quota = len(rows) if first is None and look == 0 else round(share * len(candidates))
        total += max(0, quota * len(orders) - sum((c.id, order) in there for c in candidates for order in orders))
    return total


def standing(
    judge: Judge, exported: ExportedJudge, rows: Sequence[Conversation], there: set[tuple[str, str]]
) -> First | None:
    """What a judge said before its last look, where it said so of all `rows`; None else, and where it has one look."""
    *before, _ = judge.looks
    known = all((c.id, order) in there for c in rows for look in before for order in look)
    return opinions_of(judge, exported, rows, len(before)) if before and known else None


def lasts_for_pilot(
    judge: Judge, first: First, settings: PredictConfig, there: set[tuple[str, str]], budget: Budget
) -> bool:
    """Whether there is time to open a judge's engine, and for the rest of its pilot; logs a warning if not."""
    rows = first.conversations
    pilot = draw_pilot(len(rows), round(settings.second_opinions * len(rows)), settings.pilot)
    left = [p for p in pilot if any((rows[p].id, order) not in there for order in judge.looks[-1])]
    if lasts := budget.lasts_for(first.opinions.tokens[left].sum(), opening=True):
        return lasts
    log.warning(
        "the time budget does not last for %s to start and to judge a pilot of %d rows: what was said before stands",
        *(judge.name, len(pilot)),
    )
    return False


def opinions_of(judge: Judge, exported: ExportedJudge, rows: Sequence[Conversation], shown: int) -> First:
    """What a judge said in so many of its looks, recalibrated, of those of `rows` that had them all."""
    orders = [order for look in judge.looks[:shown] for order in look]
    scores = read_scores(judge.parts).filter(pl.col("order").is_in(orders))
    whole = set(scores.group_by("id").len().filter(pl.col("len") == len(orders))["id"])
    known = [c for c in rows if c.id in whole]
    ids = pl.DataFrame({"id": [c.id for c in known]}, schema={"id": pl.String})
    recalibrate = read_recalibration(exported.folder)
    logits, tokens = [], np.zeros(len(known))
    for order in orders:
        found = ids.join(scores.filter(pl.col("order") == order), on="id", how="left", maintain_order="left")
        logits.append(recalibrate(among(found["logits"].to_numpy(), exported.labels)))
        tokens += found["prompt_tokens"].to_numpy()
    return First(known, Opinions(logits[0], logits[-1], tokens))


@dataclass(frozen=True)
class ShareJudge:
    """A judge whose engine is open, and all that is needed to ask it.

    `there`: (id, order) of all that is judged.
    """

    judge: Judge
    exported: ExportedJudge
    settings: PredictConfig
    there: set[tuple[str, str]]
    writer: StoreWriter
    scorer: Scorer
    run: ScoringRun
    budget: Budget

    def score(self, conversations: Sequence[Conversation], orders: Sequence[Order]) -> None:
        """Judge `conversations` in `orders`, but for what is there, and write it down."""
        there, fingerprints = self.there, {c.id: c.sided_fingerprint() for c in conversations}

        def row(prompt: Rendered, logits: np.ndarray) -> dict[str, Any]:
            there.add((prompt.id, prompt.order))
            return {
                **scored_row(prompt, logits),
                "process": self.writer.origin.writer,
                "fingerprint": fingerprints[prompt.id],
            }

        done = frozenset(there)  # the renderer's thread reads it while rows are added
        lacking = [c for c in conversations if any((c.id, order) not in done for order in orders)]
        rendered = (p for p in self.exported.renderer.render(lacking, orders) if (p.id, p.order) not in done)
        self.run.score(self.writer, self.scorer, rendered, row)

    def first_opinions(self, conversations: Sequence[Conversation]) -> None:
        """Judge all `conversations`, whatever time it takes."""
        began = time.time()
        self.score(conversations, self.judge.looks[0])
        self.budget.spend(began, self.run.progress.tokens)

    def second_opinions(self, first: First, shown: int) -> None:
        """Give up to the quota's conversations the look `shown`: a pilot, then those that it says need it most."""
        rows, orders = first.conversations, self.judge.looks[shown - 1]
        quota = round(self.settings.second_opinions * len(rows))
        if self.budget.end is None and quota == len(rows):
            self.score(rows, orders)
            return
        pilot = draw_pilot(len(rows), quota, self.settings.pilot)
        if not self._in_pieces(first, pilot, orders):
            return
        second = opinions_of(self.judge, self.exported, [rows[p] for p in pilot], shown).opinions.logits
        if len(pilot):
            gain = expected_gain(first.opinions.logits[pilot], second).mean()
            log.info("a pilot of %d rows: %s is expected to gain %.4f nats a row", len(pilot), self.judge.name, gain)
        self._in_pieces(first, in_turn(first.opinions, pilot, second)[: quota - len(pilot)], orders)

    def _in_pieces(self, first: First, positions: np.ndarray, orders: Sequence[Order]) -> bool:
        """Judge conversations, piece by piece; False where time or patience ended before that.

        A piece is begun only where, at the speed until now, it ends in time.
        """
        rows, tokens = first.conversations, first.opinions.tokens
        left = [int(p) for p in positions if any((rows[p].id, order) not in self.there for order in orders)]
        for start in range(0, len(left), self.run.rows_per_part):
            piece = sorted(left[start : start + self.run.rows_per_part])
            if not self.budget.lasts_for(tokens[piece].sum()):
                log.info("the time budget is used up")
                return False
            began = time.time()
            self.score([rows[p] for p in piece], orders)
            if self.run.interrupt.asked:
                return False
            self.budget.spend(began, tokens[piece].sum())
        return True
