"""The scorer for many machines: Ray Data feeds a pool of workers, each with a vLLM or transformers scorer of its own.

Prompts go to workers in tasks, a run of neighbours each, so that beginnings which they share stay in one cache. A
worker that dies is started again, as often as machines come and go, and its tasks are scored again. The process that
asks owns the prompts, so that no other node's loss loses one.
"""

import logging
import math
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pyarrow as pa
import ray
import ray.data.exceptions

from core.errors import UserError
from core.scoring import check_length
from teachers.scorers.config import RayConfig, TransformersConfig, VllmConfig
from teachers.scorers.engines import engine_gpus, open_engine

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "teachers")  # what a worker imports of ours: Ray takes them along
START_RETRIES = 3  # workers in a row that die while they start
TASKS_IN_FLIGHT = 2  # of each worker: the next one's prompts are there when it has finished one
STUCK_SECONDS = 3600  # without any result: long for loading a model, short for a run of days
CONNECT_SECONDS = 20
CLOSE_SECONDS = 60
LOG_LEVELS = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # it warns that its bars are off
    "ray.data._internal.execution.operators.map_operator": logging.ERROR,  # and that num_cpus and num_gpus are both set
}
PROMPTS = pa.schema({"position": pa.int64(), "ids": pa.list_(pa.int32())})
RESULTS = pa.schema(  # one row a task
    {
        "positions": pa.list_(pa.int64()),
        "outputs": pa.list_(pa.list_(pa.float32())),
        "tokens_cached": pa.int64(),
        "error": pa.string(),
    }
)


class RayScorer:
    """Scores on a Ray cluster, or on one that it starts on this machine and ends in `close()`.

    Workers load the model when `stream` begins and end with it: give one stream all prompts. It draws them all before
    the first result.
    """

    def __init__(self, model: Path, config: RayConfig, max_tokens: int, label_ids: Sequence[int] | None = None) -> None:
        """Connect to `config.address`, where null starts Ray here: some seconds.

        `max_tokens` is the longest prompt in tokens. Raises `UserError` for an address where no Ray answers and for
        workers that fit on no node which is there now.
        """
        self.settings, self.max_tokens, self.tokens_cached = config, max_tokens, 0
        _check(config)
        engine = config.worker
        if isinstance(engine, VllmConfig) and config.gpus > 1:
            # Ray has given the worker its GPUs. vLLM's ray executor would ask Ray for as many again.
            engine = replace(engine, engine_args={"distributed_executor_backend": "mp", **engine.engine_args})
        self._worker = (model.resolve(), engine, max_tokens, None if label_ids is None else list(label_ids))
        self._results: Any = None
        self._environment = dict(os.environ)
        self._started = not ray.is_initialized()
        if self._started:
            _start(config)
        try:
            self._room = _room(config)
        except UserError:
            self.close()
            raise

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """As `core.scoring.Scorer` says, a task at a time. Raises `UserError` for what fails on a worker."""
        blocks = list(self._blocks(prompts))
        if not blocks:
            return
        workers = min(self.settings.workers, len(blocks))
        pool = ray.data.ActorPoolStrategy(
            min_size=int(min(workers, self._room)), max_size=workers, max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT
        )
        dataset = ray.data.from_blocks(blocks)
        del blocks  # the object store has them
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        dataset.context.max_consecutive_actor_init_deaths = START_RETRIES
        dataset.context.execution_no_progress_timeout_s = STUCK_SECONDS
        results = dataset.map_batches(
            Worker,
            fn_constructor_args=self._worker,
            batch_size=self.settings.prompts_per_task,
            batch_format="pyarrow",
            num_gpus=self.settings.gpus,
            num_cpus=self.settings.cpus,
            compute=pool,
        )
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
            raise UserError(
                f"Ray gave up ({type(error).__name__}: {error}); workers may tell more above. What is written stays: "
                "the same command goes on"
            ) from error
        finally:
            finished.close()  # ends the workers, also where the consumer stopped early

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
            psutil.wait_procs(_local_workers(), timeout=CLOSE_SECONDS)  # they are closing their engines
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

    def __init__(
        self, model: Path, config: VllmConfig | TransformersConfig, max_tokens: int, label_ids: list[int] | None
    ) -> None:
        self.error: str | None = None
        self._open = ExitStack()
        self._config = config
        try:
            if not (model / "config.json").exists():
                node = ray.util.get_node_ip_address()
                raise UserError(f"there is no model {model} on node {node}: it must be on a path that all nodes see")
            self.scorer = self._open.enter_context(open_engine(model, config, max_tokens, label_ids))
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
                if self._config.backend == "vllm" and _engine_died(error) and not _started_again():
                    os._exit(1)  # a worker that is lost is started again; where that does not help, it is an error
                log.exception("prompts %d to %d", positions[0], positions[-1])
                row["error"] = f"prompts {positions[0]} to {positions[-1]}, on a worker on Ray: {_describe(error)}"
        return pa.Table.from_pylist([row], schema=RESULTS)

    def __del__(self) -> None:
        self._open.close()


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _engine_died(error: Exception) -> bool:
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error.__cause__, EngineDeadError)


def _started_again() -> bool:
    with warnings.catch_warnings(action="ignore"):  # it uses a part of Ray that it advises against
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def _local_workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name().startswith("ray::MapWorker"):  # Ray Data's name for them
                found.append(child)
    return found


def _check(settings: RayConfig) -> None:
    if settings.gpus > 1 and settings.gpus % 1:
        raise UserError(f"scorer.gpus={settings.gpus:g}: give GPUs as a whole number or a share of one")
    if not isinstance(settings.worker, VllmConfig):
        return
    shards = engine_gpus(settings.worker.engine_args)
    if settings.gpus and math.ceil(settings.gpus) != shards:
        raise UserError(
            f"scorer.gpus={settings.gpus:g}, but scorer.worker.engine_args spreads the model over {shards}: "
            "set gpus to tensor_parallel_size x pipeline_parallel_size"
        )


def _room(settings: RayConfig) -> float:
    """How many workers the nodes can hold, whoever uses them now. Raises `UserError` for none: Ray would just wait."""
    needs = {name: need for name, need in (("GPU", settings.gpus), ("CPU", settings.cpus)) if need}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min((node.get(name, 0) // need for name, need in needs.items()), default=math.inf) for node in nodes)
    if not room:
        there = "; ".join(f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in nodes)
        raise UserError(
            f"scorer: a worker with gpus={settings.gpus:g}, cpus={settings.cpus:g} fits on no node of the cluster, "
            f"whose nodes have {there}: ask for less, or add nodes first"
        )
    if room < settings.workers:
        more = "the others start when nodes come"
        log.warning("scorer.workers=%d: the cluster has room for %d now; %s", settings.workers, room, more)
    return room


def _start(settings: RayConfig) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # `ray.init` takes SIGTERM for itself, which whoever scores may have an answer to.
    before = signal.getsignal(signal.SIGTERM)
    try:
        _check_address(settings.address)
        ray.init(
            address=settings.address or "local",  # null would join what RAY_ADDRESS names
            include_dashboard=None if settings.address else False,
            logging_level=logging.ERROR,
            runtime_env={
                "py_modules": [str(ROOT / name) for name in PACKAGES],
                "env_vars": {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},  # each worker would show bars of its own
            },
        )
    except OSError as error:
        if settings.address is None:
            raise
        raise UserError(
            f"scorer.address={settings.address}: no Ray cluster lets us in there ({error}); start it, set "
            "RAY_AUTH_MODE=token if it asks for a token, or set the address to null for this machine alone"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)


def _check_address(address: str | None) -> None:
    """Raise `OSError` where nothing answers at a host:port: Ray would try for a quarter of an hour."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
