"""Starting and asking the real server in tests."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx

from tests.running import free_port, start_command

PAIR = {"prompt": "Why is the sky blue?", "response_a": "Light is scattered by air.", "response_b": "I cannot see it."}


@dataclass
class Server:
    """A running `python -m distill.serve`."""

    process: BaseProcess
    url: str
    log: Path

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)

    def judge(self, *pairs: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
        """The results of conversations that must be judged."""
        answer = self.post("/v1/judge", {"conversations": list(pairs), **settings})
        assert answer.status_code == 200, answer.text
        results: list[dict[str, Any]] = answer.json()["results"]
        return results

    def wait_until_ready(self, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.is_alive(), self.log.read_text()[-4000:]
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not ready after {seconds} s: {self.log.read_text()[-4000:]}")

    def tell(self, told: signal.Signals) -> None:
        os.kill(self.process.pid or 0, told)

    def ends(self, told: signal.Signals | None = None, seconds: float = 120) -> int | None:
        """Its exit code, after a signal or without; None where it goes on."""
        if told is not None:
            self.tell(told)
        self.process.join(seconds)
        return self.process.exitcode


@contextmanager
def serving(
    export: Path, root: Path, *overrides: str, backend: str = "transformers", environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """`python -m distill.serve` of an export on a free port, once it is ready; killed at the end if it still runs."""
    arguments = ("+exp=smoke", f"serve.model={export}", f"scorer@scorers.exported={backend}", *overrides)
    with started(root, *arguments, environment=environment) as server:
        yield server


@contextmanager
def started(root: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """The same with these `arguments`, to which root and port are added."""
    port = free_port()
    root.mkdir(parents=True, exist_ok=True)
    log = root / f"serve-{port}.log"
    arguments = (*arguments, f"paths.root={root}", f"serve.port={port}")
    process = start_command("distill.serve", *arguments, stdout=log, stderr=log, environment=environment)
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        process.kill()
        process.join()
