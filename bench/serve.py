"""How fast a served judge answers under load, and the bare engine: python -m bench.serve [--export FOLDER] [--data ..]

64 clients on loopback, each with one conversation at a time in both orders, against `python -m distill.serve` with the
vLLM backend. The engine's turn is a `LLM.classify` of the very same prompts, all at once, in this process. Turns
alternate, and no conversation is sent twice, so that no prefix cache knows them. On a CPU without VNNI a w8a8 export is
served by transformers (`teachers/scorers/int8.py`), and the two engines differ. `fraction_of_engine`: rows a
second of the service / of the engine, over all turns; `lost`: requests without an answer; latencies are the clients'.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from bench.configuration import configured
from bench.processes import processor_seconds
from core.data.table import load_conversations
from core.exported import ExportedJudge, open_exported
from core.records import ORDERS, Conversation

TARGETS = {"errors": ["<=", 0], "lost": ["<=", 0], "fraction_of_engine": [">=", 0.8]}
START_SECONDS = 600
SERVER = "distill.serve"
MORE = (
    "prepare more by python -m distill.prepare data=arena_sim data.name=load data.simulate.conversations=8000 "
    "data.simulate.seed=7, and give --data artifacts/data/load"
)


@dataclass
class Load:
    """What the clients saw. `done`: conversations that were answered."""

    seconds: float = 0.0
    done: list[Conversation] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    lost: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, default=Path("artifacts/exports/demo/w8a8"))
    parser.add_argument("--data", type=Path, default=Path("artifacts/data/arena_sim"), help="prepared conversations")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60, help="of load, over all turns")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    judge, fresh = open_exported(arguments.export), iter(load_conversations(arguments.data))
    with (
        tempfile.TemporaryDirectory() as root,
        served(arguments.export, root) as (url, server),
        engine(judge) as classify,
    ):
        warm = list(islice(fresh, 8))
        asyncio.run(load(url, iter(warm), arguments.clients, 60))
        classify(warm)
        loads, engine_seconds, processor = [], [], []
        for _ in range(arguments.turns):
            began = processor_seconds(server)
            loads.append(asyncio.run(load(url, fresh, arguments.clients, arguments.seconds / arguments.turns)))
            busy, middle = processor_seconds(server) - began, processor_seconds(without=SERVER)
            if next(fresh, None) is None:
                sys.exit(f"error: all of {arguments.data} is asked, too few for {arguments.seconds:g} s: {MORE}")
            engine_seconds.append(classify(loads[-1].done))
            processor.append((busy, processor_seconds(without=SERVER) - middle))
    report(loads, engine_seconds, processor)


def report(loads: Sequence[Load], engine_seconds: Sequence[float], processor: Sequence[tuple[float, float]]) -> None:
    rows = [len(turn.done) * len(ORDERS) for turn in loads]
    for turn, count, bare, (busy, bare_busy) in zip(loads, rows, engine_seconds, processor, strict=True):
        print(
            f"{count} rows: service {turn.seconds:.1f} s ({busy:.1f} s of processor time), "
            f"engine {bare:.1f} s ({bare_busy:.1f} s); latency {np.percentile(turn.latencies, [50, 99]).round(1)} s"
        )
    latencies = np.concatenate([turn.latencies for turn in loads]) * 1000
    service, bare = sum(rows) / sum(turn.seconds for turn in loads), sum(rows) / sum(engine_seconds)
    figures = {
        "errors": sum(turn.errors for turn in loads),
        "lost": sum(turn.lost for turn in loads),
        "p50_ms": round(float(np.percentile(latencies, 50))),
        "p99_ms": round(float(np.percentile(latencies, 99))),
        "rows_per_s": round(service, 1),
        "engine_rows_per_s": round(bare, 1),
        "fraction_of_engine": round(service / bare, 3),
    }
    print(json.dumps({"bench": "serve", "figures": figures, "targets": TARGETS}))


async def load(url: str, fresh: Iterator[Conversation], clients: int, seconds: float) -> Load:
    """`clients` that ask one after the other until the time is up; what they have asked by then is waited for."""
    seen, began = Load(), time.perf_counter()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:

        async def client() -> None:
            while time.perf_counter() < began + seconds and (conversation := next(fresh, None)):
                parts = {part: getattr(conversation, part) for part in ("prompt", "response_a", "response_b")}
                sent = time.perf_counter()
                try:
                    answer = await http.post("/v1/judge", json={"conversations": [parts]})
                except httpx.TransportError:
                    seen.lost += 1
                    continue
                if answer.status_code == 200:
                    seen.latencies.append(time.perf_counter() - sent)
                    seen.done.append(conversation)
                else:
                    seen.errors += 1

        await asyncio.gather(*(client() for _ in range(clients)))
    seen.seconds = time.perf_counter() - began
    return seen


@contextmanager
def served(export: Path, root: str) -> Iterator[tuple[str, psutil.Process]]:
    """The URL of a server for `export` and its process."""
    port = free_port()
    arguments = ["+exp=demo", f"serve.model={export}", f"serve.port={port}", f"paths.root={root}"]
    process = subprocess.Popen([sys.executable, "-m", SERVER, *arguments], stderr=subprocess.DEVNULL)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while not is_ready(url):
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(1)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def engine(judge: ExportedJudge) -> Iterator[Any]:
    """A function that scores conversations in both orders with an engine of the same settings: seconds."""
    from vllm import PoolingParams

    from teachers.scorers.config import VllmConfig
    from teachers.scorers.vllm import VllmScorer

    config = configured(["+exp=demo"]).scorers.exported
    assert isinstance(config, VllmConfig)
    with VllmScorer(judge.folder, config, judge.max_tokens) as scorer:

        def classify(rows: Sequence[Conversation]) -> float:
            prompts = [{"prompt_token_ids": prompt.ids} for prompt in judge.renderer.render(rows)]
            began = time.perf_counter()
            scorer.llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
            return time.perf_counter() - began

        yield classify


if __name__ == "__main__":
    main()
