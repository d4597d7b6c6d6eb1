"""A scoring run with any scorer: rows are written as they finish, and whatever stops it costs none of them."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.progress import duration
from core.records import Conversation
from core.store.parts import NO_FOLD
from core.store.rows import LOGITS
from core.store.writing import StoreWriter
from teachers.interrupts import Interrupt
from teachers.prefetching import ahead
from teachers.progress import ScoringProgress
from teachers.scoring_run import ScoringRun, not_done

pytestmark = pytest.mark.timeout(60)
ROWS_PER_PART = 10


@dataclass(frozen=True)
class Prompt:
    id: str
    ids: list[int]


class Arithmetic:
    """A scorer whose logits follow from the prompt; it holds three prompts and finishes the last one first."""

    tokens_cached = 0

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        held: list[tuple[int, Sequence[int]]] = []
        for entry in enumerate(prompts):
            held.append(entry)
            if len(held) == 3:
                yield self.answer(*held.pop())
        while held:
            yield self.answer(*held.pop())

    def answer(self, position: int, prompt: Sequence[int]) -> tuple[int, np.ndarray]:
        return position, np.full(3, prompt[0], np.float32)


class DiesAfter(Arithmetic):
    def __init__(self, prompts: int):
        self.left = prompts

    def answer(self, position: int, prompt: Sequence[int]) -> tuple[int, np.ndarray]:
        self.left -= 1
        if self.left < 0:
            raise ValueError("the engine died")
        return super().answer(position, prompt)


def row(prompt: Prompt, logits: np.ndarray) -> dict[str, Any]:
    constant = {"order": "ab", "prompt_tokens": 1, "truncated": False, "judge_fold": NO_FOLD, "in_sample": False}
    return {"id": prompt.id, "logits": logits, **constant, "fingerprint": 0, "outside": None}


def run(folder: Path, scorer: Arithmetic, prompts: Iterable[Prompt], interrupt: Interrupt | None = None) -> None:
    scoring = ScoringRun(ScoringProgress(35, None), interrupt or Interrupt(), ROWS_PER_PART)
    with StoreWriter(folder, {}, "judge") as writer:
        scoring.score(writer, scorer, prompts, row)


def test_what_the_cache_spared_is_counted_once(tmp_path: Path) -> None:
    class Caches(Arithmetic):
        def answer(self, position: int, prompt: Sequence[int]) -> tuple[int, np.ndarray]:
            self.tokens_cached += 2  # since the engine started, as engines count
            return super().answer(position, prompt)

    scoring, scorer = ScoringRun(ScoringProgress(8, None), Interrupt(), ROWS_PER_PART), Caches()
    with StoreWriter(tmp_path, {}, "judge") as writer:
        for part in ("first", "second"):
            scoring.score(writer, scorer, [Prompt(f"{part} {i}", [1, 2, 3]) for i in range(4)], row)
    assert scoring.progress.cached == scorer.tokens_cached == 16


def stored(folder: Path) -> dict[str, float]:
    rows = pl.concat([pl.read_parquet(part) for part in sorted(folder.glob("part-*.parquet"))])
    assert rows["id"].is_unique().all()
    return dict(zip(rows["id"].to_list(), rows["logits"].arr.first().to_list(), strict=True))


PROMPTS = [Prompt(f"p{i}", [i]) for i in range(35)]
ALL = {p.id: float(p.ids[0]) for p in PROMPTS}


def test_every_prompt_keeps_its_own_logits(tmp_path: Path) -> None:
    run(tmp_path, Arithmetic(), PROMPTS)
    assert stored(tmp_path) == ALL
    assert len(list(tmp_path.glob("part-*.parquet"))) == 4  # 10 + 10 + 10 + 5


def test_what_was_finished_before_the_engine_died_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the engine died"):
        run(tmp_path, DiesAfter(17), PROMPTS)
    assert len(stored(tmp_path)) == 17 and stored(tmp_path).items() <= ALL.items()


def test_a_renderer_s_error_is_raised_here_and_its_thread_ends(tmp_path: Path) -> None:
    def broken() -> Iterator[Prompt]:
        yield from PROMPTS[:7]
        raise ValueError("row p7 cannot be rendered")

    with pytest.raises(ValueError, match="row p7"):
        run(tmp_path, Arithmetic(), broken())
    assert stored(tmp_path).items() <= ALL.items()
    assert not [t for t in threading.enumerate() if t.name == "rendering"]


def test_logits_that_are_not_finite_are_never_stored(tmp_path: Path) -> None:
    prompts = [*PROMPTS[:5], Prompt("bad", [np.nan])]  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"not finite for \['bad'\]"):
        run(tmp_path, Arithmetic(), prompts)
    assert "bad" not in stored(tmp_path)


def test_an_interrupt_finishes_what_the_scorer_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachers.scoring_run.PROMPTS_AHEAD", 1)
    with Interrupt() as interrupt:

        def prompts() -> Iterator[Prompt]:
            for i, prompt in enumerate(PROMPTS):
                if i == 12:
                    os.kill(os.getpid(), signal.SIGINT)
                    while not interrupt.asked:
                        time.sleep(0.01)
                yield prompt

        run(tmp_path, Arithmetic(), prompts(), interrupt)
    assert 0 < len(stored(tmp_path)) <= 12 and stored(tmp_path).items() <= ALL.items()


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        while not interrupt.asked:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_producer_is_ahead_but_not_by_more_than_it_may() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    waiting = ahead(items(), 5)
    assert next(waiting) == 0
    time.sleep(0.3)
    assert 5 <= len(made) <= 7
    assert list(waiting) == [*range(1, 100)]


def test_what_is_not_done_is_found_by_id_side_and_text(tmp_path: Path) -> None:
    a, b, c = (Conversation(i, [i], ["x"], ["y"]) for i in "abc")
    both = [
        {**row(Prompt("a", [0]), np.zeros(3)), "order": order, "fingerprint": a.sided_fingerprint()}
        for order in ("ab", "ba")
    ]
    one = [{**row(Prompt("b", [0]), np.zeros(3)), "order": "ba", "fingerprint": b.sided_fingerprint()}]
    with StoreWriter(tmp_path, {}, "judge") as writer:
        writer.append(pl.DataFrame([*both, *one], schema=LOGITS))
        assert not_done([a, b, c], writer, ("ab", "ba")) == ([b, c], {("b", "ba")})
        with pytest.raises(ValueError, match=r"other texts under the same ids, such as \['a'\]"):
            not_done([replace(a, response_a=["z"])], writer, ("ab", "ba"))
        with pytest.raises(ValueError, match="other texts"):  # what a judge said of a would be read as said of b
            not_done([a.swap()], writer, ("ab", "ba"))


def test_progress_tells_time_left_and_cost() -> None:
    progress = ScoringProgress(100, price_per_hour=36.0)
    for _ in range(25):
        progress.advance(tokens=40, cached=100, elapsed=0)
    assert progress.describe(50, cached=100) == (
        "25 of 100 rows, 0.5 rows/s, 20 tokens/s, 10% cached, 0 h 02 min left, about 1.50 in cost"
    )
    assert duration(90) == "90 s" and duration(3 * 3600 + 300) == "3 h 05 min"
