"""The queue between many who ask and one scorer: same logits, shared batches, nobody left waiting."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from core.scoring import Scorer, score
from deploy.serving.batching import Batcher, Closed
from teachers.scorers.transformers import TransformersScorer
from tests.composing import scorer


@pytest.fixture(scope="module")
def judge(tiny_judge_llama: Path) -> TransformersScorer:
    return TransformersScorer(tiny_judge_llama, scorer("transformers", dtype="fp32"))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 560, rng.integers(1, 60)).tolist() for _ in range(40)]


class Counting:
    """The judge, with a record of how many prompts each of its streams had; it waits for `go` before it begins one."""

    tokens_cached = 0

    def __init__(self, judge: Scorer) -> None:
        self.judge, self.streams, self.go = judge, list[int](), threading.Event()

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        self.go.wait()
        place = len(self.streams)
        self.streams.append(0)

        def counted() -> Iterator[Sequence[int]]:
            for prompt in prompts:
                self.streams[place] += 1
                yield prompt

        yield from self.judge.stream(counted())


def test_many_threads_get_the_logits_of_their_own_prompts(judge: TransformersScorer, prompts: list[list[int]]) -> None:
    batcher = Batcher(lambda: nullcontext(judge), max_wait_ms=2)
    found: dict[int, np.ndarray] = {}

    def ask(rows: range) -> None:
        for row in rows:
            found[row] = batcher.submit(prompts[row]).result(60)

    threads = [threading.Thread(target=ask, args=(range(start, len(prompts), 8),)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert np.abs(np.stack([found[row] for row in range(len(prompts))]) - score(judge, prompts)).max() < 1e-4


def test_what_waits_shares_a_stream(judge: TransformersScorer, prompts: list[list[int]]) -> None:
    counting = Counting(judge)
    batcher = Batcher(lambda: nullcontext(counting), max_wait_ms=0)
    futures = [batcher.submit(prompt) for prompt in prompts]
    counting.go.set()
    for future in futures:
        future.result(60)
    batcher.submit(prompts[0]).result(60)
    batcher.close()
    assert counting.streams == [len(prompts), 1]


def test_an_idle_scorer_waits_for_company_only_as_long_as_it_is_told(judge: TransformersScorer) -> None:
    counting = Counting(judge)
    counting.go.set()
    batcher = Batcher(lambda: nullcontext(counting), max_wait_ms=2000)
    began = time.monotonic()
    first = batcher.submit([5, 6])
    time.sleep(0.01)
    second = batcher.submit([7, 8])
    first.result(60), second.result(60)
    assert counting.streams == [2]
    assert time.monotonic() - began < 5
    batcher.close()


def test_what_is_cancelled_in_time_is_not_scored(judge: TransformersScorer, prompts: list[list[int]]) -> None:
    counting = Counting(judge)
    batcher = Batcher(lambda: nullcontext(counting), max_wait_ms=0)
    futures = [batcher.submit(prompt) for prompt in prompts]
    for future in futures[1::2]:
        assert future.cancel()
    counting.go.set()
    batcher.close()
    assert sum(counting.streams) == len(prompts) // 2
    assert all(future.done() for future in futures)
    with pytest.raises(CancelledError):
        futures[1].result()


def test_closing_scores_what_was_submitted_and_takes_no_more(
    judge: TransformersScorer, prompts: list[list[int]]
) -> None:
    closed = []

    @contextmanager
    def opened() -> Iterator[Scorer]:
        yield judge
        closed.append(True)

    batcher = Batcher(opened, max_wait_ms=0)
    futures = [batcher.submit(prompt) for prompt in prompts]
    batcher.close()
    assert closed and all(future.done() and len(future.result()) == 3 for future in futures)
    assert batcher.ready.done() and batcher.ended.result(1) is None
    with pytest.raises(Closed):
        batcher.submit(prompts[0])


class Dying:
    """A scorer whose engine dies after its first result."""

    tokens_cached = 0

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        drawn = list(prompts)
        yield len(drawn) - 1, np.zeros(3, np.float32)
        raise ValueError("the engine died")


def test_nobody_waits_for_a_dead_scorer() -> None:
    go = threading.Event()

    @contextmanager
    def opened() -> Iterator[Scorer]:
        go.wait()
        yield Dying()

    batcher = Batcher(opened, max_wait_ms=0)
    futures = [batcher.submit([5]) for _ in range(3)]
    go.set()
    assert len(futures[-1].result(10)) == 3
    for future in futures[:-1]:
        with pytest.raises(Closed, match="the engine died"):
            future.result(10)
    with pytest.raises(ValueError, match="the engine died"):
        batcher.ended.result(10)
    with pytest.raises(Closed):
        batcher.submit([5])


def test_a_scorer_that_cannot_be_opened_is_told_to_all_who_wait() -> None:
    @contextmanager
    def opened() -> Iterator[Scorer]:
        raise ValueError("there is no model")
        yield

    batcher = Batcher(opened, max_wait_ms=0)
    for future in (batcher.ready, batcher.ended):
        with pytest.raises(ValueError, match="there is no model"):
            future.result(10)
    with pytest.raises(Closed):
        batcher.submit([5]).result(10)
