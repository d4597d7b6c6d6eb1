"""The HTTP service: the judge's own answers, clear refusals, and no accepted work lost, however it ends."""

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance
from starlette.testclient import TestClient

from core.errors import UserError
from core.exported import open_exported
from core.records import LABELS, Conversation
from core.scoring import logits_by_order, score_conversations
from deploy.serving.jobs import Job, Jobs
from deploy.serving.middleware import Middleware
from deploy.serving.routes import create_app
from deploy.serving.server import serve
from deploy.serving.service import Service
from eval.config import CanaryMode
from eval.conformal import LEVELS, Thresholds, write_thresholds
from eval.metrics import predict
from eval.recalibration import Recalibration, write_recalibration
from teachers.scorers.transformers import TransformersScorer
from tests.artefacts import finish_again
from tests.composing import configured, scorer
from tests.device import Device
from tests.engines import spawned
from tests.running import ROOT, refuses
from tests.serving import PAIR, Server, serving
from tests.tiny_exports import tiny_export, with_swapped_labels

NOISE = 1e-4  # of fp32 logits, in batches of other shapes
BODY, CONVERSATIONS, QUEUE = 100_000, 20, 40
LIMITS = (f"serve.max_body_bytes={BODY}", f"serve.max_conversations={CONVERSATIONS}", f"serve.max_queue={QUEUE}")
LONG = "Explain why the sky is blue, and say how long it takes. " * 40


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("exports") / "tiny" / "w8a8")


@pytest.fixture(scope="module")
def server(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(export, tmp_path_factory.mktemp("root"), *LIMITS) as running:
        yield running


@contextmanager
def in_process(
    export: Path, jobs: Path, key: str | None = None, canaries: CanaryMode = "refuse", **changes: Any
) -> Iterator[tuple[TestClient, Service]]:
    """The same application without a socket, for what depends on how it is set up."""
    chosen = replace(configured("+exp=smoke").serve, **changes)
    service = Service(open_exported(export), scorer("transformers"), chosen, jobs, canaries, 0.9)
    app = Middleware(create_app(service, key is not None), service.traffic, key, chosen.max_body_bytes)
    with TestClient(app) as client:  # type: ignore[arg-type]
        while client.get("/health").status_code != 200:
            assert service.failure is None, service.failure
            time.sleep(0.05)
        yield client, service


def pairs(count: int, words: int = 12) -> list[dict[str, Any]]:
    """Conversations that differ, some of two turns."""
    rng = np.random.default_rng(count)
    vocabulary = [*LONG.split()[:11], "light", "air", "scattered", "more", "than", "red", "steps", "teacher"]

    def text() -> str:
        return " ".join(rng.choice(vocabulary, rng.integers(1, words)))

    turns = [1 + (place % 4 == 3) for place in range(count)]
    fields = ("prompt", "response_a", "response_b")
    return [{"id": f"c{i}", **{field: [text() for _ in range(n)] for field in fields}} for i, n in enumerate(turns)]


def exchanged(pair: dict[str, Any]) -> dict[str, Any]:
    return {**pair, "response_a": pair["response_b"], "response_b": pair["response_a"]}


def array(probabilities: dict[str, float]) -> np.ndarray:
    return np.array([probabilities[label] for label in LABELS])


# Answers.


@pytest.mark.timeout(400)
def test_answers_are_the_scorers_own(server: Server, export: Path) -> None:
    asked = pairs(CONVERSATIONS)
    judge = open_exported(export)
    rows = [Conversation(p["id"], p["prompt"], p["response_a"], p["response_b"]) for p in asked]
    scores = score_conversations(TransformersScorer(export, scorer("transformers")), judge.renderer, rows)
    ab, ba = logits_by_order(scores, [row.id for row in rows])
    found = server.judge(*asked)
    assert [result["id"] for result in found] == [row.id for row in rows]
    for result, expected, first, second in zip(found, predict(ab, ba), predict(ab, ab), predict(ba, ba), strict=True):
        assert np.abs(array(result["probabilities"]) - expected).max() < NOISE
        assert np.abs(array(result["by_order"]["ab"]) - first).max() < NOISE
        assert np.abs(array(result["by_order"]["ba"]) - second).max() < NOISE
        assert result["verdict"] == LABELS[expected.argmax()]
        assert result["flips"] == (first.argmax() != second.argmax())
    assert {r["prompt_tokens"] for r in found} == set(scores["prompt_tokens"])
    assert len({r["flips"] for r in found}) == 2, "the test sees both cases"


def test_a_service_that_ends_leaves_the_device_free(export: Path, tmp_path: Path, device: Device) -> None:
    with in_process(export, tmp_path) as (client, _):
        assert client.get("/health").status_code == 200 and device.models_alive == 1
    device.check_left_free(scorers=1)


def test_exchanging_the_responses_exchanges_the_probabilities(server: Server) -> None:
    asked = pairs(10)
    for there, back in zip(server.judge(*asked), server.judge(*map(exchanged, asked)), strict=True):
        assert np.abs(array(there["probabilities"]) - array(back["probabilities"])[[1, 0, 2]]).max() < NOISE
        assert np.abs(array(there["by_order"]["ab"]) - array(back["by_order"]["ba"])[[1, 0, 2]]).max() < NOISE
        assert there["flips"] == back["flips"]


def test_one_order_says_nothing_of_flips(server: Server) -> None:
    (both,), (one,) = server.judge(PAIR), server.judge(PAIR, orders="ab")
    assert one["flips"] is None and set(one["by_order"]) == {"ab"}
    assert np.abs(array(one["probabilities"]) - array(both["by_order"]["ab"])).max() < NOISE


def test_what_does_not_fit_is_shortened_and_says_so(server: Server) -> None:
    short, long = server.judge(PAIR, {**PAIR, "response_b": LONG})
    assert not short["truncated"] and long["truncated"] and short["prompt_tokens"] < long["prompt_tokens"] <= 256
    as_turns = {key: [text] for key, text in PAIR.items()}
    assert server.judge(as_turns)[0]["prompt_tokens"] == short["prompt_tokens"]


@pytest.mark.long
def test_recalibration_and_thresholds_beside_the_model_are_applied(export: Path, tmp_path: Path) -> None:
    with in_process(export, tmp_path / "plain") as (client, _):
        plain = client.post("/v1/judge", json={"conversations": [PAIR]}).json()["results"][0]
        assert not client.get("/v1/model").json()["recalibrated"]
    calibrated = tiny_export(tmp_path / "tiny" / "merged")
    write_recalibration(calibrated, Recalibration((0.5,) * 3, (0.0, 0.0, 0.7)), {})
    write_thresholds(calibrated, Thresholds([0.3] * len(LEVELS), [0.0] * len(LEVELS), 9))
    finish_again(calibrated)
    with in_process(calibrated, tmp_path / "calibrated") as (client, _):
        found = client.post("/v1/judge", json={"conversations": [PAIR]}).json()["results"][0]
        one = client.post("/v1/judge", json={"conversations": [PAIR], "orders": "ab"}).json()["results"][0]
        model = client.get("/v1/model").json()
        assert model["recalibrated"] and model["coverage"] == 0.9
    assert plain["set"] is None and one["set"] == ["a", "b", "tie"]
    likely = {label for label, chance in found["probabilities"].items() if chance >= 0.3}
    assert set(found["set"]) == likely | {max(found["probabilities"], key=found["probabilities"].get)}
    expected = array(plain["probabilities"]) ** 0.5 * np.exp([0, 0, 0.7])
    assert np.abs(array(found["probabilities"]) - expected / expected.sum()).max() < NOISE


# Refusals.


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"conversations": [{**PAIR, "prompt": ["one", "two"]}]}, r"conversations\[0\]: each turn .* prompt has 2"),
        ({"conversations": [PAIR, {**PAIR, "prompt": " \n"}]}, r"conversations\[1\]: the prompt is empty"),
        ({"conversations": [{**PAIR, "prompt": []}]}, r"conversations\[0\].prompt: .* at least 1 item"),
        ({"conversations": [{**PAIR, "response_b": 3}]}, r"conversations\[0\].response_b: give a text"),
        ({"conversations": [{**PAIR, "response_b": ["a", None]}]}, r"response_b\[1\]: .*valid string"),
        ({"conversations": [{**PAIR, "respons_b": "x"}]}, r"conversations\[0\].respons_b: Extra"),
        ({"conversations": []}, "at least 1 item"),
        ({"conversations": [PAIR] * (CONVERSATIONS + 1)}, f"at most {CONVERSATIONS} at a time"),
        ({"conversations": [PAIR], "orders": "ba"}, "orders: .*'both' or 'ab'"),
        ({"conversations": [{**PAIR, "prompt": "\ud800"}]}, r"prompt\[0\]: .*surrogate"),
        ({"conversations": [{**PAIR, "\ud800": 1}]}, r"conversations\[0\]: .*unicode"),
        ({f"key{k}": 1 for k in range(1000)}, "1000 keys; known here: conversations, orders"),
        (
            {"conversations": [{f"key{k}": 1 for k in range(1000)}]},
            r"conversations\[0\]: 1000 keys; known here: id, prompt",
        ),
        ({"conversations": [{}] * 1000}, r"conversations\[0\].prompt: .*, and 2 more"),
        ({"conversations": [{**PAIR, "prompt": [3] * 1000}]}, r"prompt\[0\]: .*valid string$"),
        ([], "body: "),
    ],
)
def test_bodies_that_do_not_fit(server: Server, body: Any, detail: str) -> None:
    content = json.dumps(body).encode()
    answer = httpx.post(f"{server.url}/v1/judge", content=content, headers={"content-type": "application/json"})
    problem = answer.json()
    assert answer.status_code == problem["status"] == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["title"] and problem["request_id"] == answer.headers["x-request-id"]
    assert re.search(detail, problem["detail"]), problem["detail"]


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 50_000, b""])
def test_bodies_that_are_no_json(server: Server, content: bytes) -> None:
    answer = httpx.post(f"{server.url}/v1/judge", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["status"] == answer.status_code


@pytest.mark.parametrize("length", ["told", "in chunks"])
def test_a_body_is_not_read_beyond_its_limit(server: Server, length: str) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        while sent < 500 * BODY:
            sent += BODY // 4
            yield b" " * (BODY // 4)

    try:
        answer = httpx.post(f"{server.url}/v1/judge", content=b" " * (BODY + 1) if length == "told" else chunks())
        assert answer.status_code == 413 and str(BODY) in answer.json()["detail"]
    except httpx.WriteError:  # it hung up while the body was on its way
        assert length == "in chunks"
    assert sent < 400 * BODY
    assert server.judge(PAIR)


def test_a_full_queue_refuses_and_says_when_to_come_again(server: Server) -> None:
    body = {"conversations": [{**PAIR, "response_a": LONG[:1500]}] * CONVERSATIONS}
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda _: server.post("/v1/judge", body), range(12)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}, statuses
    for answer in answers:
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
    assert server.judge(PAIR), "refusals take no places"


@pytest.mark.parametrize(("given", "kept"), [("a-b.C_9", True), ("two words", False), ("x" * 129, False)])
def test_request_ids_come_back_where_they_are_harmless(server: Server, given: str, kept: bool) -> None:
    for path in ("/health", "/nowhere", "/v1/model"):
        answer = server.get(path, headers={"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) == kept and answer.headers["x-request-id"]


def test_only_the_key_opens_v1(export: Path, tmp_path: Path) -> None:
    body = {"conversations": [PAIR]}
    with in_process(export, tmp_path, key="sésame") as (client, _):
        for headers in ({}, {"authorization": "Bearer sesame"}, {"authorization": "Basic sésame".encode()}):
            answer = client.post("/v1/judge", json=body, headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/jobs/" + "0" * 32).status_code == 401
        assert client.post("/v1/judge", content=b"{", headers={}).status_code == 401, "before the body is looked at"
        assert client.post("/v1/judge", json=body, headers={"authorization": "bearer sésame".encode()}).is_success
        assert "HTTPBearer" in client.get("/openapi.json").json()["components"]["securitySchemes"]


@pytest.mark.long
def test_logits_that_are_not_finite_are_no_verdict(tmp_path: Path) -> None:
    broken = tiny_export(tmp_path / "tiny" / "w8a8")
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"] = torch.full_like(weights["score.weight"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    finish_again(broken)
    with in_process(broken, tmp_path / "jobs", canaries="warn") as (client, _):
        answer = client.post("/v1/judge", json={"conversations": [PAIR]})
        assert answer.status_code == 500 and "not finite" in answer.json()["detail"]
        id = client.post("/v1/jobs", json={"conversations": [PAIR, PAIR]}).json()["id"]
        while (state := client.get(f"/v1/jobs/{id}").json())["state"] != "done":
            time.sleep(0.05)
        assert [set(result) for result in state["results"]] == [{"id", "error"}] * 2


@pytest.mark.long
def test_a_judge_that_is_computed_otherwise_is_not_served_or_says_so(export: Path, tmp_path: Path) -> None:
    swapped = with_swapped_labels(export, tmp_path / "tiny" / "swapped")
    with in_process(swapped, tmp_path / "jobs", canaries="warn") as (client, _):
        assert "computes something else" in client.get("/v1/model").json()["computes_otherwise"]
        assert client.post("/v1/judge", json={"conversations": [PAIR]}).is_success
    with in_process(export, tmp_path / "jobs") as (client, _):
        assert client.get("/v1/model").json()["computes_otherwise"] is None
    with pytest.raises(UserError, match=r"computes something else .* canaries.on_failure=warn continues"):
        settings_of_serve = replace(configured("+exp=smoke").serve, port=0)
        serve(open_exported(swapped), scorer("transformers"), settings_of_serve, tmp_path / "jobs", "refuse", 0.9)


@pytest.mark.timeout(200)
@pytest.mark.long
def test_the_entry_point_refuses_what_cannot_be_served(export: Path, tmp_path: Path) -> None:
    chosen = ("+exp=smoke", f"paths.root={tmp_path}", f"serve.model={export}", "scorer@scorers.exported=transformers")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen there" in refuses("distill.serve", *chosen, f"serve.port={taken.getsockname()[1]}")
    assert "NO_SUCH_KEY" in refuses("distill.serve", *chosen, "serve.api_key_variable=NO_SUCH_KEY")
    assert "make export" in refuses("distill.serve", *chosen[:2], "serve.port=0")
    assert "serve.max_queue=3" in refuses("distill.serve", *chosen, "serve.max_queue=3")


# What others read.


def test_prometheus_can_read_the_metrics(server: Server) -> None:
    def sample(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(server.get("/metrics").text)
        samples = [s for family in families for s in family.samples if s.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    judged, tokens = sample("judge_conversations_total"), sample("judge_prompt_tokens_total")
    ok = sample("judge_requests_total", route="/v1/judge", status="200")
    (result,) = server.judge(PAIR)
    assert sample("judge_conversations_total") == judged + 1
    assert sample("judge_prompt_tokens_total") == tokens + 2 * result["prompt_tokens"]
    assert sample("judge_requests_total", route="/v1/judge", status="200") == ok + 1
    assert sample("judge_request_seconds_count", route="/v1/judge") > ok
    assert sample("judge_queue_conversations") == 0


@pytest.mark.timeout(200)
def test_no_request_of_its_own_schema_breaks_it(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = [not_a_server_error, content_type_conformance, response_schema_conformance]

    for operation in schema.get_all_operations():

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.ok().as_strategy())
        def holds(case: Any) -> None:
            case.call_and_validate(base_url=server.url, checks=checks)

        holds()


# Nothing accepted is lost.


def done(server: Server, id: str) -> dict[str, Any]:
    """A job's state once it is done."""
    deadline = time.monotonic() + 200
    while (state := server.get(f"/v1/jobs/{id}").json())["state"] != "done":
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    return dict(state)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_jobs_survive_a_kill_and_requests_a_sigterm(export: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    asked = [pairs(count, words=60) for count in (1000, 200, 7)]
    with serving(export, root) as server:
        ids = [server.post("/v1/jobs", {"conversations": job}).json()["id"] for job in asked]
        while server.get(f"/v1/jobs/{ids[0]}", params={"results": False}).json()["finished"] < 20:
            time.sleep(0.02)
        server.ends(signal.SIGKILL)
    (part,) = root.glob("serve/jobs/*/*.part.jsonl")
    kept = part.read_bytes().splitlines()
    assert 20 <= len(kept) < 1000, "it was killed in the middle"
    with part.open("ab") as file:
        file.write(b'{"place": 999, "id": "c2')  # what a kill may leave
    with serving(export, root, "serve.shutdown_seconds=200") as server:
        for job, id in zip(asked, ids, strict=True):
            state = done(server, id)
            assert [result["id"] for result in state["results"]] == [pair["id"] for pair in job]
            assert state["finished"] == state["conversations"] == len(job)
        lines = (part.parent / f"{ids[0]}.results.jsonl").read_bytes().splitlines()
        assert lines[: len(kept)] == kept and len(lines) == 1000, "what was there is not judged again"
        again = server.judge(*asked[0][:5])
        for result, expected in zip(done(server, ids[0])["results"], again, strict=False):
            assert np.abs(array(result["probabilities"]) - array(expected["probabilities"])).max() < NOISE

        body = {"conversations": pairs(250, words=200)}
        with ThreadPoolExecutor(2) as clients:
            accepted = [clients.submit(server.post, "/v1/judge", body) for _ in range(2)]
            queue = 0.0
            while queue < 500:
                queue = float(server.get("/metrics").text.partition("\njudge_queue_conversations ")[2].split()[0])
            server.tell(signal.SIGTERM)
            while (health := server.get("/health")).status_code == 200:
                time.sleep(0.01)
            refused = server.post("/v1/judge", {"conversations": [PAIR]})
            assert health.json()["state"] == "draining"
            assert (
                refused.status_code == 503 and "draining" in refused.json()["detail"] and refused.headers["retry-after"]
            )
            for answer in accepted:
                assert len(answer.result().json()["results"]) == 250
        assert server.ends(seconds=60) == 0
        assert "Traceback" not in server.log.read_text()


def test_a_job_is_on_disk_before_it_is_accepted(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    with in_process(export, tmp_path, max_jobs=2) as (client, service):
        monkeypatch.setattr(service.jobs, "_judge_pairs", never)  # nobody takes what waits
        id = client.post("/v1/jobs", json={"conversations": [PAIR], "orders": "ab"}).json()["id"]
        written = Job(service.jobs.folder, id).read()
        assert written.orders == "ab" and written.conversations[0].prompt == [PAIR["prompt"]]
        assert client.get("/v1/jobs/" + "0" * 32).status_code == 404
        assert client.get("/v1/jobs/..%2F..%2Fetc").status_code in (404, 422)
        service.jobs.waiting += ["0" * 32] * 2
        refused = client.post("/v1/jobs", json={"conversations": [PAIR]})
        assert refused.status_code == 503 and "jobs wait" in refused.json()["detail"]


def test_a_damaged_job_is_named(tmp_path: Path) -> None:
    job = Job(tmp_path, "0" * 32)
    job.accepted.write_text('{"orders": "both"}\n{"prompt": "x"}\n')
    with pytest.raises(ValueError, match=f"{job.accepted} is damaged"):
        job.read()


def test_texts_of_any_kind_survive_the_disk(export: Path, tmp_path: Path) -> None:
    odd = "line\none\rtwo\u2028three\x85four\x00 \U0001f600"
    with in_process(export, tmp_path) as (client, service):
        asked = {"conversations": [{**PAIR, "id": odd, "response_a": odd}] * 3}
        id = client.post("/v1/jobs", json=asked).json()["id"]
        while (state := client.get(f"/v1/jobs/{id}").json())["state"] != "done":
            time.sleep(0.05)
        assert [result["id"] for result in state["results"]] == [odd] * 3
        assert Job(service.jobs.folder, id).read().conversations[0].response_a == [odd]


# The engine that it is meant for.


@pytest.mark.long
@pytest.mark.timeout(900)
def test_vllm_gives_the_same_answers_and_leaves_nothing_behind(export: Path, server: Server, tmp_path: Path) -> None:
    asked = pairs(CONVERSATIONS)
    expected = server.judge(*asked)
    with spawned(), serving(export, tmp_path / "root", backend="vllm") as fast:
        with ThreadPoolExecutor(len(asked)) as clients:
            found = [results[0] for results in clients.map(fast.judge, asked)]
        for result, same in zip(found, expected, strict=True):
            assert result["id"] == same["id"]
            assert np.abs(array(result["probabilities"]) - array(same["probabilities"])).max() < 1e-3
        children = psutil.Process(fast.process.pid).children(recursive=True)
        assert children and fast.ends(signal.SIGTERM) == 0
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_one_folder_of_jobs_has_one_server(server: Server, export: Path) -> None:
    content = open_exported(export).manifest.content[:12]
    (folder,) = server.log.parent.glob(f"serve/jobs/{content}")
    with pytest.raises(ValueError, match="another server works on the jobs"):
        Jobs(folder, judge_pairs=None, limit=1)  # type: ignore[arg-type]


def test_the_container_gets_what_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists() and f"!{source.split('/')[0]}" in ignored, source
