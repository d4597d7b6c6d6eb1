"""The scorer for many machines: Ray Data feeds a pool of workers, each with a vLLM or transformers scorer of its own.

Prompts go to workers in tasks, a run of neighbours each, so that beginnings which they share stay in one cache. A
worker that dies is started again, as often as machines come and go, and its tasks are scored again. The process that
asks owns the prompts, so that no other node's loss loses one.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any, Self

import numpy as np
import psutil
import pyarrow as pa
import ray
import ray.data.exceptions

from core.errors import EngineDied, UserError
from core.scoring import Scorer, check_length
from teachers.scorers.config import LocalConfig, RayConfig
from teachers.scorers.ray.cluster import local_workers, room_for_workers, start
from teachers.scorers.spec import ModelSpec

log = logging.getLogger(__name__)
START_RETRIES = 3  # workers in a row that die while they start
TASKS_IN_FLIGHT = 2  # of each worker: the next one's prompts are there when it has finished one
STUCK_SECONDS = 3600  # without any result: long for loading a model, short for a run of days
CLOSE_SECONDS = 60
PROMPTS = pa.schema({"position": pa.int64(), "ids": pa.list_(pa.int32())})
RESULTS = pa.schema(  # one row a task
    {
        "positions": pa.list_(pa.int64()),
        "outputs": pa.list_(pa.list_(pa.float32())),
        "tokens_cached": pa.int64(),
        "error": pa.string(),
    }
)
OpenWorker = Callable[[ModelSpec, LocalConfig], AbstractContextManager[Scorer]]


class RayScorer:
    """Scores on a Ray cluster, or on one that it starts on this machine and ends in `close()`.

    Workers load the model when `stream` begins and end with it: give one stream all prompts. It draws them all before
    the first result.
    """

    def __init__(self, spec: ModelSpec, config: RayConfig, open_worker: OpenWorker) -> None:
        """Connect to `config.address`, where null starts Ray here: some seconds.

        `open_worker` opens the scorer of one worker; Ray takes it there by its name. Raises `UserError` for an address
        where no Ray answers and for workers that fit on no node which is there now.
        """
        self.settings, self.max_tokens, self.tokens_cached = config, spec.max_tokens, 0
        if config.gpus > 1 and config.gpus % 1:
            raise UserError(f"scorers.*.gpus={config.gpus:g}: give GPUs as a whole number or a share of one")
        self._worker = (open_worker, replace(spec, model=spec.model.resolve()), config.worker.on_worker(config.gpus))
        self._results: Any = None
        self._environment = dict(os.environ)
        self._started = not ray.is_initialized()
        if self._started:
            start(config)
        try:
            self._room = room_for_workers(config)
        except UserError:
            self.close()
            raise

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """As `core.scoring.Scorer` says, a task at a time. Raises `UserError` for what fails on a worker."""
        blocks = list(self._blocks(prompts))
        if not blocks:
            return
        results = self._scored(blocks)
        del blocks  # the object store has them
        # A batch that is fetched ahead would hold back the one before it.
        finished: Any = iter(results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        self._results = finished
        try:
            for table in finished:
                for task in table.to_pylist():
                    if task["error"] is not None:
                        raise UserError(task["error"])
                    self.tokens_cached += task["tokens_cached"]
                    yield from zip(task["positions"], np.array(task["outputs"], np.float32), strict=True)
        except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
            raise EngineDied(
                f"Ray gave up ({type(error).__name__}: {error}); workers may tell more above. What is written stays: "
                "fix the cause, then rerun the same command to resume"
            ) from error
        finally:
            finished.close()  # ends the workers, also where the consumer stopped early

    def _scored(self, blocks: list[pa.Table]) -> Any:
        """The data set, not computed yet, of one row in `RESULTS` for each of `blocks`."""
        workers = min(self.settings.workers, len(blocks))
        pool = ray.data.ActorPoolStrategy(
            min_size=int(min(workers, self._room)), max_size=workers, max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT
        )
        dataset = ray.data.from_blocks(blocks)
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        dataset.context.max_consecutive_actor_init_deaths = START_RETRIES
        dataset.context.execution_no_progress_timeout_s = STUCK_SECONDS
        return dataset.map_batches(
            Worker,
            fn_constructor_args=self._worker,
            batch_size=self.settings.prompts_per_task,
            batch_format="pyarrow",
            num_gpus=self.settings.gpus,
            num_cpus=self.settings.cpus,
            compute=pool,
        )

    def _blocks(self, prompts: Iterable[Sequence[int]]) -> Iterator[pa.Table]:
        waiting = enumerate(prompts)
        while task := list(islice(waiting, self.settings.prompts_per_task)):
            for position, prompt in task:
                check_length(position, prompt, self.max_tokens)
            positions, ids = zip(*task, strict=True)
            yield pa.table({"position": positions, "ids": ids}, schema=PROMPTS)

    def close(self) -> None:
        """End the workers, and Ray too if it was started here: the next engine finds the device free."""
        if self._results is not None:
            self._results.close()
            self._results = None
        if self._started:
            psutil.wait_procs(local_workers(), timeout=CLOSE_SECONDS)  # they are closing their engines
            ray.shutdown()
            os.environ.clear()
            os.environ.update(self._environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Worker:
    """Runs on a node: opens a scorer once, then scores a task a call.

    What fails is a result, not an exception: Ray would wrap it, or take a scorer that cannot be opened for a lost
    worker.
    """

    def __init__(self, open_worker: OpenWorker, spec: ModelSpec, config: LocalConfig) -> None:
        self.error: str | None = None
        self._open = ExitStack()
        try:
            if not (spec.model / "config.json").exists():
                node = ray.util.get_node_ip_address()
                raise UserError(
                    f"there is no model {spec.model} on node {node}: it must be on a path that all nodes see"
                )
            self.scorer = self._open.enter_context(open_worker(spec, config))
        except Exception as error:
            log.exception("the scorer could not be opened")
            self.error = f"a worker on Ray could not open its scorer: {_describe(error)}"

    def __call__(self, task: pa.Table) -> pa.Table:
        """A table in `PROMPTS` -> one row in `RESULTS`."""
        positions = task["position"].to_pylist()
        row: dict[str, Any] = {"positions": positions, "outputs": [], "tokens_cached": 0, "error": self.error}
        if self.error is None:
            before = self.scorer.tokens_cached
            try:
                found = dict(self.scorer.stream(task["ids"].to_pylist()))
                row["outputs"] = [found[i] for i in range(len(positions))]
                row["tokens_cached"] = self.scorer.tokens_cached - before
            except Exception as error:
                if isinstance(error, EngineDied) and not _started_again():
                    os._exit(1)  # a worker that is lost is started again; where that does not help, it is an error
                log.exception("prompts %d to %d", positions[0], positions[-1])
                row["error"] = f"prompts {positions[0]} to {positions[-1]}, on a worker on Ray: {_describe(error)}"
        return pa.Table.from_pylist([row], schema=RESULTS)

    def __del__(self) -> None:
        self._open.close()


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _started_again() -> bool:
    with warnings.catch_warnings(action="ignore"):  # it uses a part of Ray that it advises against
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
