import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from core.scoring import score
from teachers.scorers.backends import open_here
from teachers.scorers.config import RayConfig
from teachers.scorers.opening import open_scorer
from teachers.scorers.ray.cluster import local_workers
from teachers.scorers.ray.scorer import RayScorer
from teachers.scorers.spec import ModelSpec
from teachers.scorers.transformers import TransformersScorer
from tests.composing import scorer
from tests.running import free_port

pytestmark = pytest.mark.timeout(600)  # Ray and its workers take half a minute to start, on a busy machine several
MAX_TOKENS = 256
REFERENCE = scorer("transformers", batch_tokens=1024)


def on_ray(engine_args: dict[str, Any] | None = None, **changes: Any) -> RayConfig:
    """Two workers that share a core, with transformers, or vLLM where there are `engine_args`; else as `conf/` has it
    but for `changes`.
    """
    worker = REFERENCE if engine_args is None else scorer("vllm", engine_args=engine_args)
    tiny = {"worker": asdict(worker), "workers": 2, "gpus": 0.0, "cpus": 0.5, "prompts_per_task": 16}
    config: RayConfig = scorer("ray", **tiny | changes)
    return config


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 560, rng.integers(1, MAX_TOKENS + 1)).tolist() for _ in range(count)]


def expected(model: Path, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    return score(TransformersScorer(model, REFERENCE), prompts)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of one node, started apart from this process, as an administrator would."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # socket names must be short: not below tmp_path
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
        command += [
            "--num-cpus=2",
            "--num-gpus=2",
            "--include-dashboard=false",
            "--disable-usage-stats",
            f"--temp-dir={folder}",
        ]
        head = subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert head.stdout is not None and any("runtime started" in line for line in head.stdout)
        yield f"127.0.0.1:{port}"
        processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in processes:
            process.kill()  # `ray stop` would end every Ray on the machine
        psutil.wait_procs(processes)


@pytest.mark.long
def test_joins_a_running_cluster(cluster: str, tiny_llama: Path) -> None:
    prompts = random_prompts(64)
    labels = ["A", "B", "?"]
    config = on_ray(address=cluster, gpus=1.0)  # of the two GPUs that it believes it has
    with open_scorer(tiny_llama, config, MAX_TOKENS, label_tokens=labels) as judge:
        found = score(judge, prompts)
    with open_scorer(tiny_llama, REFERENCE, MAX_TOKENS, label_tokens=labels) as reference:
        assert np.abs(found - score(reference, prompts)).max() < 1e-5
    with socket.create_connection(("127.0.0.1", int(cluster.rpartition(":")[2])), timeout=10):
        pass  # the cluster is still there
    assert not ray.is_initialized()


@pytest.mark.timeout(60)
def test_an_address_where_nothing_answers(tiny_judge_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"scorers\.\*\.address=127\.0\.0\.1:9: cannot connect"):
        RayScorer(ModelSpec(tiny_judge_llama, MAX_TOKENS), on_ray(address="127.0.0.1:9"), open_here)


@pytest.fixture(scope="module")
def judge(tiny_judge_llama: Path) -> Iterator[RayScorer]:
    before = signal.getsignal(signal.SIGTERM), dict(os.environ)
    processes = set(psutil.Process().children(recursive=True))
    with open_scorer(tiny_judge_llama, on_ray(), MAX_TOKENS) as judge:
        assert isinstance(judge, RayScorer)
        assert signal.getsignal(signal.SIGTERM) == before[0]  # the stage's own answer to it stays
        yield judge
    assert not ray.is_initialized() and not set(psutil.Process().children(recursive=True)) - processes
    assert (signal.getsignal(signal.SIGTERM), dict(os.environ)) == before


@pytest.mark.long
def test_equals_transformers_task_by_task(judge: RayScorer, tiny_judge_llama: Path) -> None:
    prompts = random_prompts(400)
    found: dict[int, np.ndarray] = {}
    arrived: list[float] = []
    for position, output in judge.stream(iter(prompts)):
        assert position not in found and output.dtype == np.float32
        found[position] = output
        arrived.append(time.perf_counter())
    assert sorted(found) == [*range(len(prompts))]
    began = time.perf_counter()
    by_one = expected(tiny_judge_llama, prompts)
    assert arrived[-1] - arrived[0] > 0.2 * (time.perf_counter() - began)  # not all at the end
    assert np.abs(np.stack([found[i] for i in range(len(prompts))]) - by_one).max() < 1e-5
    assert score(judge, []).shape == (0, 3)


@pytest.mark.long
def test_a_worker_that_is_killed_loses_nothing(judge: RayScorer, tiny_judge_llama: Path) -> None:
    prompts = random_prompts(1600, seed=1)
    found: dict[int, np.ndarray] = {}
    killed = None
    for position, output in judge.stream(prompts):
        if killed is None:
            killed = local_workers()[0]
            killed.kill()
        assert position not in found
        found[position] = output
    assert killed is not None and not killed.is_running()
    rows = np.stack([found[i] for i in range(len(prompts))])
    assert np.abs(rows - expected(tiny_judge_llama, prompts)).max() < 1e-5


@pytest.mark.long
def test_stopping_early_ends_the_workers(judge: RayScorer) -> None:
    stream: Any = judge.stream(random_prompts(1600))
    next(stream)
    workers = local_workers()
    stream.close()
    assert workers and not psutil.wait_procs(workers, timeout=60)[1]


@pytest.mark.long
def test_an_error_on_a_worker_says_which_prompts_and_what(judge: RayScorer, tiny_judge_llama: Path) -> None:
    prompts = random_prompts(48)
    with pytest.raises(ValueError, match=r"prompts 16 to 31, on a worker on Ray: IndexError: index out of range"):
        score(judge, [*prompts[:20], [10**6], *prompts[21:]])  # beyond the vocabulary
    assert len(score(judge, prompts[:2])) == 2


@pytest.mark.long
@pytest.mark.parametrize("prompt", [[], [5] * (MAX_TOKENS + 1)])
def test_refuses_prompts_of_the_wrong_length(judge: RayScorer, prompt: list[int]) -> None:
    with pytest.raises(ValueError, match=f"prompt 1 has {len(prompt)} tokens, this scorer takes 1 to {MAX_TOKENS}"):
        score(judge, [[5], prompt])


@pytest.mark.long
def test_a_model_that_a_worker_does_not_see(judge: RayScorer, tmp_path: Path) -> None:
    # Ray runs already: the second scorer joins, and leaves it running.
    missing = pytest.raises(ValueError, match=r"there is no model .*elsewhere.*a path that all nodes see")
    with RayScorer(ModelSpec(tmp_path / "elsewhere", MAX_TOKENS), on_ray(), open_here) as other, missing:
        score(other, random_prompts(4))
    assert ray.is_initialized()


@pytest.mark.long
def test_workers_that_fit_nowhere_are_refused_at_once(judge: RayScorer, tiny_judge_llama: Path) -> None:
    asked: list[dict[str, Any]] = [{"gpus": 64.0}, {"cpus": 4096.0}]
    for changes in asked:
        with pytest.raises(ValueError, match=r"fits on no node .* have \d+ GPUs and \d+ CPUs"):
            RayScorer(ModelSpec(tiny_judge_llama, MAX_TOKENS), on_ray(**changes), open_here)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 1.5}, r"scorers\.\*\.gpus=1.5"),
        ({"gpus": 1.0, "engine_args": {"tensor_parallel_size": 8}}, "over 8: set gpus to tensor_"),
    ],
)
def test_refuses_settings_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayScorer(ModelSpec(Path("nowhere"), MAX_TOKENS), on_ray(**changes), open_here)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_vllm_on_a_worker_equals_transformers(judge: RayScorer, tiny_judge_llama: Path) -> None:
    stem = random_prompts(1)[0] + random_prompts(1, seed=1)[0]
    prompts = [stem[:200] + tail[:50] for tail in random_prompts(40, seed=2)]
    config = on_ray(engine_args={"enable_prefix_caching": True}, workers=1)
    with open_scorer(tiny_judge_llama, config, MAX_TOKENS) as engine:
        found = score(engine, prompts)
        assert engine.tokens_cached > 100 * len(prompts) / 2  # the shared beginning, in later tasks at least
    assert np.abs(found - expected(tiny_judge_llama, prompts)).max() < 1e-4
