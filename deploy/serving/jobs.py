"""Jobs that survive a crash: accepted once they are on disk, results appended as they come.

    <id>.jsonl           the job: a line with its orders, then a line a conversation; it is there once accepted
    <id>.part.jsonl      results so far, as they came, each with its place in the job
    <id>.results.jsonl   all results; it is there once the job is done

A folder holds the jobs of one judge, which resume when that judge is served again.
"""

import asyncio
import fcntl
import json
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from core.errors import UserError
from core.records import Order
from deploy.serving.batching import Closed
from deploy.serving.schemas import JobState, JudgeRequest, Pair, Result, Unjudged, Verdict

# Jobs keep CHUNK x LANES conversations with the scorer: enough to fill batches, few enough to let requests in.
CHUNK, LANES = 8, 8
NAME = re.compile(r"([0-9a-f]{32})\.jsonl")
JudgePairs = Callable[[Sequence[Pair], Sequence[Order]], Awaitable[list[Result]]]


@dataclass(frozen=True)
class Job:
    """One job's files."""

    folder: Path
    id: str

    @property
    def accepted(self) -> Path:
        return self.folder / f"{self.id}.jsonl"

    @property
    def so_far(self) -> Path:
        return self.folder / f"{self.id}.part.jsonl"

    @property
    def results(self) -> Path:
        return self.folder / f"{self.id}.results.jsonl"

    def write(self, request: JudgeRequest) -> None:
        """Put the job on disk, whole or not at all."""
        partial = self.folder / f".{self.accepted.name}.partial"
        lines = [json.dumps({"orders": request.orders}), *(pair.model_dump_json() for pair in request.conversations)]
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        _rename(partial, self.accepted)

    def read(self) -> JudgeRequest:
        """The request as it was accepted. Raises `UserError` where the file is damaged."""
        try:
            orders, *conversations = map(json.loads, self.accepted.read_bytes().splitlines())
            return JudgeRequest(conversations=conversations, **orders)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.accepted} is damaged ({error}): remove it, and send the job again") from error

    def found(self) -> dict[int, Result]:
        """Results so far by place, in the order of the job. A line that a crash left half written does not count."""
        for path in (self.so_far, self.results):  # the first becomes the second once the job is done
            with suppress(FileNotFoundError):
                whole = path.read_bytes().rpartition(b"\n")[0]
                found = sorted(map(json.loads, whole.splitlines()), key=lambda each: each["place"])
                return {each.pop("place"): Unjudged(**each) if "error" in each else Verdict(**each) for each in found}
        return {}

    def cut_torn_line(self) -> None:
        """Remove a half-written last line, so that appended results begin a line of their own."""
        if self.so_far.exists():
            os.truncate(self.so_far, self.so_far.read_bytes().rfind(b"\n") + 1)

    def finish(self) -> None:
        """Mark the job as done, once all results are there."""
        with self.so_far.open("rb") as file:
            os.fsync(file.fileno())
        _rename(self.so_far, self.results)


class Jobs:
    """The jobs of one judge, done one after the other. `waiting`: ids of those that are not done, oldest first."""

    def __init__(self, folder: Path, judge_pairs: JudgePairs, limit: int) -> None:
        """Claim `folder`, in which at most `limit` jobs wait. Raises `UserError` where another server has it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limit, self._judge_pairs = folder, limit, judge_pairs
        self._lock = (folder / ".lock").open("w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # engine processes do not inherit it
        except BlockingIOError as error:
            self._lock.close()
            raise UserError(
                f"another server works on the jobs in {folder}: stop it, or give this one its own paths.root"
            ) from error
        names = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        ids = [match[1] for path in names if (match := NAME.fullmatch(path.name))]
        self.waiting = [id for id in ids if not Job(folder, id).results.exists()]
        self._news = asyncio.Event()

    def close(self) -> None:
        """Release the folder to another server."""
        self._lock.close()

    @property
    def full(self) -> bool:
        return len(self.waiting) >= self.limit

    async def accept(self, request: JudgeRequest) -> str:
        """The id of a new job, once it is on disk. Raises `OSError` where it cannot be."""
        job = Job(self.folder, secrets.token_hex(16))
        await asyncio.to_thread(job.write, request)
        self.waiting.append(job.id)
        self._news.set()
        return job.id

    def state(self, id: str, model: str, results: bool) -> JobState | None:
        """How far a job is; None where no job has that id."""
        job = Job(self.folder, id)
        if not job.accepted.exists():
            return None
        with job.accepted.open("rb") as file:
            conversations = sum(1 for _ in file) - 1
        found = job.found()
        running = self.waiting[:1] == [id]
        return JobState(
            id=id,
            state="done" if len(found) == conversations else "running" if running else "waiting",
            conversations=conversations,
            finished=len(found),
            results=list(found.values()) if results else [],
            model=model,
        )

    async def work(self) -> None:
        """Work on the jobs that wait, forever; returns when the scorer is gone."""
        with suppress(Closed):
            while True:
                while self.waiting:
                    await self._run(Job(self.folder, self.waiting[0]))
                    self.waiting.pop(0)
                self._news.clear()
                await self._news.wait()

    async def _run(self, job: Job) -> None:
        """Judge the conversations of a job that have no result yet, several chunks side by side."""
        request, found = await asyncio.to_thread(lambda: (job.read(), job.found()))
        todo = iter([place for place in range(len(request.conversations)) if place not in found])
        job.cut_torn_line()
        with job.so_far.open("a", encoding="utf-8") as file:

            async def lane() -> None:
                for places in _chunks(todo):
                    results = await self._judge_pairs([request.conversations[place] for place in places], request.shown)
                    file.writelines(map(_line, places, results))
                    file.flush()

            lanes = [asyncio.create_task(lane()) for _ in range(LANES)]
            try:
                await asyncio.gather(*lanes)
            finally:
                for task in lanes:
                    task.cancel()
                await asyncio.gather(*lanes, return_exceptions=True)
        await asyncio.to_thread(job.finish)


def _chunks(places: Iterator[int]) -> Iterator[list[int]]:
    while chunk := list(islice(places, CHUNK)):
        yield chunk


def _line(place: int, result: Result) -> str:
    return json.dumps({"place": place, **result.model_dump()}) + "\n"


def _rename(file: Path, name: Path) -> None:
    """Rename a synced file, and sync its new name."""
    file.replace(name)
    folder = os.open(name.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
