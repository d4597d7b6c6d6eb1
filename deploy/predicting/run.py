"""Predicting a file that nobody voted on: judged on all devices, within a time budget, never twice.

First every conversation is judged as it stands, then in the other order those that need it most, while time lasts.
What is judged lies in `<output>.parts`, a store of soft logits: a run that was killed goes on there, and once the
submission is written it is removed. Each process has a share of the conversations and an engine of its own.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.artefacts.building import STARTED, Artefact
from core.data.collecting import REJECTED, kinds
from core.errors import UserError
from core.exported import ExportedJudge, export_folder, open_exported
from core.locks import alone
from core.prompts import Rendered
from core.provenance import read_learned
from core.records import ORDERS, Conversation, Order
from core.scoring import SCORES, Scorer, logits_by_order, scored_row
from core.store.parts import clear, part_files
from core.store.reading import read_parts
from core.store.writing import StoreWriter
from deploy.predicting.devices import count_devices, side_by_side
from deploy.predicting.engine_notes import HEADER, check_engine, note_of, notes_in, tell_marked
from deploy.predicting.second_orders import by_need, chunks, draw_pilot, gains_where_sure, margin
from deploy.predicting.submission import Unlabelled, probabilities, read_unlabelled, write_submission
from distill.config import Config
from eval.recalibration import read_recalibration
from teachers.scorers.opening import open_scorer
from teachers.scoring_run import Interrupt, Progress, fill, open_writer, scoring_run

log = logging.getLogger(__name__)
ONE_ORDER = ("id", "margin")  # the columns of the list of conversations that were judged in one order only
HEADER_BYTES = 100
JUDGED = pl.Schema({**SCORES, "judge_fold": pl.Int32(), "fingerprint": pl.UInt64()})


def predict(config: Config) -> None:
    """Write `config.output` with the probabilities of every row of `config.input`.

    Raises `UserError` where the output is there already, and where a process ended early: what it judged stays, and
    the same command goes on.
    """
    began = time.time()
    check(config)
    output = Path(str(config.output))
    rows = read_unlabelled(config)
    judge = open_exported(model_folder(config))
    parts = parts_folder(config)
    with_rules = f", {len(rows.ruled)} by rule" if rows.ruled else ""
    log.info("%s: %d rows, %d for the judge%s", config.input, len(rows.ids), len(rows.conversations), with_rules)
    scorer = config.scorers.exported
    identity = {"input": rows.identity, "model": judge.manifest.content, "scorer": scorer.identity}
    judgements = Artefact(parts, "submission", identity, [], config.root)
    with alone(parts):
        tell_unreadable(rows, config.predict.max_unreadable, output)
        tell_learned(rows.conversations, judge.folder)
        # overwrite=true is about the output: what was judged on the way to a new one is kept, however often that is
        # killed.
        if config.overwrite and judgements.differing_start():
            discard(parts)
        judgements.claim()
        if rows.conversations:
            minutes = config.predict.minutes
            deadline = None if minutes is None else began + 60 * minutes
            side_by_side(judge_share, count_devices(config.predict.devices, scorer), config, deadline)
        scores = read_scores(parts)
        tell_left_out(rows, scores, output)
        tell_marked(parts, output)
        write_submission(output, rows.ids, probabilities(rows, scores, read_recalibration(judge.folder)))
        discard(parts)
    log.info("%s: %d rows, checked, after %.1f minutes", output, len(rows.ids), (time.time() - began) / 60)


def discard(parts: Path) -> None:
    """Remove what is judged, and its folder where nobody has put anything else there."""
    clear(parts)
    for note in notes_in(parts):
        note.unlink()
    shutil.rmtree(parts / STARTED.parent)
    with suppress(OSError):
        parts.rmdir()


def check(config: Config) -> None:
    """Raise `UserError` for what is wrong with the settings, before anything is read."""
    if config.output is None:
        raise UserError("output=null: name the file to write, as in output=submission.csv")
    output = Path(config.output)
    if output.suffix.lower() != ".csv":
        raise UserError(f"output={output}: a submission is a CSV file, so let its name end in .csv")
    if output.is_dir():
        raise UserError(f"output={output} is a folder: name a file, as in output={output / 'submission.csv'}")
    for path, header in written(output).items():
        if config.input is not None and path.exists() and Path(config.input).exists() and path.samefile(config.input):
            raise UserError(f"input={config.input} is the file {path}, which would be written: choose another output")
        if header is not None and path.exists() and first_line(path) != header:
            raise UserError(f"{path} is there, and this command did not write it: move it, or choose another output")
    if output.exists() and not config.overwrite:
        raise UserError(f"output={output} is there already: choose another, or replace it with overwrite=true")


def written(output: Path) -> dict[Path, str | None]:
    """The files that a prediction writes: the submission and the lists beside it, each with the header that is its own.

    None for the submission: that it may be replaced is said by `overwrite`.
    """
    return {
        output: None,
        output.with_name(f"{output.stem}.unreadable.csv"): ",".join(REJECTED),
        output.with_name(f"{output.stem}.one_order.csv"): ",".join(ONE_ORDER),
        note_of(output): HEADER,
    }


def first_line(path: Path) -> str:
    """The first line of a file of any kind, as far as it can tell one of ours from another."""
    with path.open("rb") as file:
        return file.readline(HEADER_BYTES).decode(errors="replace").rstrip("\r\n")


def model_folder(config: Config) -> Path:
    """The export that judges: `predict.model`, else the experiment's own."""
    return (
        Path(config.predict.model)
        if config.predict.model
        else export_folder(config.root, config.run, config.export.name)
    )


def parts_folder(config: Config) -> Path:
    """What is judged until now: `<output>.parts`."""
    return Path(f"{config.output}.parts")


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


def take_share(config: Config, number: int, count: int) -> Share:
    """Share `number` of `count` of the input's conversations."""
    rows = sorted(read_unlabelled(config).conversations, key=lambda c: (c.prompt, c.id))
    own = rows[len(rows) * number // count : len(rows) * (number + 1) // count]
    there = read_scores(parts_folder(config)).select("id", "order")
    return Share(own, round(config.predict.second_order * len(own)), set(there.iter_rows()))


def judge_share(number: int, count: int, config: Config, deadline: float | None) -> None:
    """What one process does: judge its share in the first order, then what it can in the second.

    It ends at once, without an engine, where nothing is left to do. `deadline` is in seconds since the epoch.
    """
    judge = open_exported(model_folder(config))
    parts, share = parts_folder(config), take_share(config, number, count)
    scorers = replace(config.scorers, teacher=config.scorers.exported)
    filling = replace(config, limit=None, scorers=scorers)
    waiting = share.waiting()
    with (
        open_writer(filling, parts, judge.renderer.hashes, judge.manifest.content, number, JUDGED) as writer,
        scoring_run(filling, parts, waiting, waiting) as (progress, interrupt),
    ):
        if waiting:
            with open_scorer(judge.folder, config.scorers.exported, judge.max_tokens) as scorer:
                check_engine(judge, scorer, config.canaries.on_failure, parts, number)
                work = Work(filling, judge, share, writer, scorer, progress, interrupt)
                if share.quota == len(share.conversations) and deadline is None:
                    work.score(share.conversations, ORDERS)  # side by side the two share their question in the cache
                else:
                    work.score(share.lacking("ab"), ("ab",))
                    work.second_orders(config.predict.pilot, deadline)


@dataclass(frozen=True)
class Work:
    """A share, and all that is needed to judge it."""

    config: Config
    judge: ExportedJudge
    share: Share
    writer: StoreWriter
    scorer: Scorer
    progress: Progress
    interrupt: Interrupt

    def score(self, conversations: Sequence[Conversation], orders: Sequence[Order]) -> None:
        """Judge `conversations` in `orders`, but for what is there, and write it down."""
        there, fingerprints = self.share.there, {c.id: c.sided_fingerprint() for c in conversations}

        def row(prompt: Rendered, logits: np.ndarray) -> dict[str, Any]:
            there.add((prompt.id, prompt.order))
            return {
                **scored_row(prompt, logits),
                "judge_fold": self.writer.origin.judge_fold,
                "fingerprint": fingerprints[prompt.id],
            }

        done = frozenset(there)  # the renderer's thread reads it while rows are added
        rendered = (p for p in self.judge.renderer.render(conversations, orders) if (p.id, p.order) not in done)
        fill(self.writer, self.scorer, rendered, row, self.config.predict.rows_per_part, self.progress, self.interrupt)

    def second_orders(self, pilot: int, deadline: float | None) -> None:
        """Judge up to the share's quota in the other order: a pilot, then those that it says need it most."""
        rows = self.share.conversations
        if self.interrupt.asked or not self.share.quota:
            return
        ids = [c.id for c in rows]
        scores = read_scores(self.writer.folder).filter(pl.col("order") == "ab")
        first = pl.DataFrame({"id": ids}).join(scores, on="id", how="left", maintain_order="left")
        tokens, logits = first["prompt_tokens"].to_numpy(), first["logits"].to_numpy()
        drawn = draw_pilot(len(rows), self.share.quota, pilot)
        if not self._judge_again(drawn, tokens, deadline):
            return
        pairs = logits_by_order(read_scores(self.writer.folder), [ids[p] for p in drawn])
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
        for piece in chunks(left, self.config.teacher.rows_per_part):
            rate = self.progress.tokens / self.progress.seconds if self.progress.tokens else np.inf
            if deadline is not None and time.time() + tokens[piece].sum() / rate > deadline:
                log.info("the time budget is used up")
                return False
            self.score([rows[p] for p in sorted(piece)], ("ba",))
            if self.interrupt.asked:
                return False
        return True


def tell_unreadable(rows: Unlabelled, most: float, output: Path) -> None:
    """Log the rows that get the prior, and list them all beside the submission.

    Raises `UserError` where these are all rows or a larger share than `most`: most likely the file is laid out
    otherwise than it should be.
    """
    _, path, *_ = written(output)
    path.unlink(missing_ok=True)  # of an earlier submission
    if rows.unreadable.is_empty():
        return
    rows.unreadable.write_csv(path)
    first, count = rows.unreadable.row(0, named=True), len(rows.unreadable)
    told = f"{kinds(rows.unreadable)}, such as line {first['line']}, id {first['id']}: {first['reason']}"
    if count > most * len(rows.ids) or count == len(rows.ids):
        raise UserError(
            f"{count:,} of {len(rows.ids):,} rows cannot be read, predict.max_unreadable={most:g}: {told}; each "
            f'text is a JSON list of rounds, such as ["Hello"], docs/data.md has the layouts. All are in {path}'
        )
    log.warning("%d rows cannot be read and get the prior: %s; all are listed in %s", count, told, path)


def tell_learned(conversations: Sequence[Conversation], model: Path) -> None:
    """Warn of rows that the judge, or its teachers, learned from: it is surer of them than of new ones."""
    try:
        learned = read_learned(model).taught().through_teachers
    except UserError as error:
        log.warning("%s", error)
        return
    if count := sum(c.fingerprint() in learned for c in conversations):
        log.warning(
            "%d of %d conversations are among those that this judge or its teachers learned from: what it says of them "
            "tells nothing of how good it is",
            *(count, len(conversations)),
        )


def tell_left_out(rows: Unlabelled, scores: pl.DataFrame, output: Path) -> None:
    """Log how many conversations keep one order, and list them with how sure the judge was beside the submission."""
    _, _, path, _ = written(output)
    path.unlink(missing_ok=True)
    again = scores.filter(pl.col("order") == "ba")["id"].implode()
    once = scores.filter(pl.col("order") == "ab", ~pl.col("id").is_in(again))
    if len(once):
        margins = margin(once["logits"].to_numpy())
        once.select("id", margin=margins).select(ONE_ORDER).write_csv(path)
        low, median, high = np.quantile(margins, (0, 0.5, 1))
        log.info(
            "%d of %d conversations (%.0f%%) were judged in one order only; their margins, between the two likeliest "
            "labels: %.3f to %.3f, median %.3f; all are listed in %s",
            *(len(once), len(rows.conversations), 100 * len(once) / len(rows.conversations), low, high, median, path),
        )
