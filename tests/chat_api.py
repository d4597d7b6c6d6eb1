"""A chat API on this machine that answers by itself, or passes on what a real server says; and misbehaves as told."""

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np

from tests.replying import Replying

MODEL = "judge-70b-2026-01"
SPELLINGS = {"A": 0, " A": 0, "**B": 1, "B": 1, "C": 2, "\nC": 2, "The": 3, "a": 3}


def question(body: dict[str, Any]) -> str:
    """What tells one question from another."""
    return hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()


def alternatives(body: dict[str, Any]) -> dict[str, float]:
    """Log-probabilities of the next token, which depend on the question."""
    rng = np.random.default_rng(int(question(body)[:8], 16))
    logits = rng.normal(size=len(SPELLINGS)) * 2
    values = logits - np.logaddexp.reduce([*logits, 0.0])  # the last is what is not listed
    return dict(zip(SPELLINGS, values.tolist(), strict=True))


def shares(body: dict[str, Any]) -> list[float]:
    """Those of A, B, C and of anything else."""
    found = [0.0] * 4
    for token, value in alternatives(body).items():
        found[SPELLINGS[token]] += math.exp(value)
    return [*found[:3], 1 - sum(found[:3])]


def tokens(body: dict[str, Any]) -> int:
    return sum(len(message["content"]) for message in body["messages"]) // 4 + 10


def answer(body: dict[str, Any]) -> dict[str, Any]:
    top = [{"token": t, "logprob": v} for t, v in alternatives(body).items()]
    best = max(top, key=lambda each: each["logprob"])
    choices: list[dict[str, Any]] = [
        {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": best["token"]},
            "logprobs": {"content": [{**best, "top_logprobs": top}]} if body.get("logprobs") else None,
        }
    ]
    if "n" in body:
        rng = np.random.default_rng(int(question(body)[:8], 16))
        drawn = rng.choice(["A.", " **B**", "C", "Hmm"], size=body["n"], p=np.array(shares(body)))
        choices = [{"index": i, "finish_reason": "stop", "message": {"content": text}} for i, text in enumerate(drawn)]
    usage = {"prompt_tokens": tokens(body), "completion_tokens": len(choices)}
    return {"model": MODEL, "choices": choices, "usage": usage}


Act = Callable[[dict[str, Any]], Any]


class ChatApi:
    """Answers at `url`; `upstream`: a server that it stands before.

    `act` says of each body what to do first: a status, (status, body, headers), "drop", "cut" (half an answer), seconds
    as a float after which to hang up, a whole answer, or None.
    """

    def __init__(self, upstream: str | None = None) -> None:
        self.act: Act = lambda body: None
        self.asked: list[str] = []  # questions, as they come
        self.paid: list[str] = []  # those that were answered
        self.spent = 0  # tokens of prompts that were answered
        self.keys: set[str | None] = set()
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        api = self

        class Handler(Replying):
            def do_GET(self) -> None:
                self.reply(404, {"error": {"message": "no list of models here"}})

            def do_POST(self) -> None:
                if (body := self.asked()) is None:
                    return
                with api.lock:
                    api.asked.append(question(body))
                    api.bodies.append(body)
                    api.keys.add(self.headers.get("Authorization"))
                    done = api.act(body)
                if isinstance(done, float):
                    time.sleep(done)
                    self.close_connection = True
                elif done == "drop":
                    self.close_connection = True
                elif isinstance(done, int):
                    self.reply(done, {"error": {"message": f"as told: {done}"}})
                elif isinstance(done, tuple):
                    self.reply(*done)
                else:
                    self.answer(body, done)

            def answer(self, body: dict[str, Any], done: Any) -> None:
                if isinstance(done, dict):
                    found = done
                elif upstream is not None:
                    passed = httpx.post(f"{upstream}/v1/chat/completions", json=body, timeout=60)
                    self.reply(passed.status_code, passed.json())
                    found = passed.json()
                else:
                    found = answer(body)
                with api.lock:
                    api.paid.append(question(body))
                    api.spent += (found.get("usage") or {}).get("prompt_tokens", 0)
                if upstream is None or isinstance(done, dict):
                    self.reply(200, found, cut=done == "cut")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def faults(seconds: float = 2.0) -> Act:
    """Every fourth question meets a fault, each kind in turn: 429 with Retry-After, 500, a cut answer, a hang-up."""
    kinds: list[Any] = [(429, {"error": {"message": "slowly"}}, {"Retry-After": "1"}), 500, "cut", "drop", seconds, 503]
    count = 0

    def act(body: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        return kinds[count // 4 % len(kinds)] if count % 4 == 1 else None

    return act
