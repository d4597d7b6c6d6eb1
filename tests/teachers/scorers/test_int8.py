"""Which engine computes int8: vLLM where its products are exact, transformers where a CPU would cut them."""

import json
from pathlib import Path

import pytest
import torch

from teachers.scorers import int8
from teachers.scorers.int8 import has_int8_activations, multiplies_exactly, saturates
from teachers.scorers.opening import open_scorer
from teachers.scorers.transformers import TransformersScorer
from tests.composing import scorer

AVX2 = "flags\t\t: fpu sse4_1 avx avx2 fma"
W8A8 = {"config_groups": {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}}}
W8A16 = {"config_groups": {"group_0": {"weights": {"num_bits": 8}, "input_activations": None}}}


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What Linux tells of the CPU, to be written: an x86 one without GPU."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(int8, "CPU_INFO", path)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return path


@pytest.mark.parametrize(
    ("flags", "exact"),
    [
        (AVX2, False),
        (f"{AVX2} avx512f avx512bw", False),
        (f"{AVX2} avx512f avx512_vnni", True),
        (f"{AVX2} avx_vnni", True),
        (f"{AVX2} amx_int8", True),
    ],
)
def test_products_are_exact_with_vnni_alone(flags: str, exact: bool, cpu: Path) -> None:
    cpu.write_text(f"processor\t: 0\nmodel name\t: with avx_vnni in its name\n{flags}\n")
    assert multiplies_exactly() == exact


def test_other_machines_do_not_cut(cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert multiplies_exactly()  # nothing is known of it
    cpu.write_text(AVX2)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert multiplies_exactly()


@pytest.mark.parametrize(("quantised", "cut"), [(W8A8, True), (W8A16, False), (None, False)])
def test_only_int8_activations_are_cut_and_no_gpu_does(
    quantised: object, cut: bool, cpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu.write_text(AVX2)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantised} if quantised else {}))
    assert has_int8_activations(tmp_path) == cut == saturates(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not saturates(tmp_path)


def test_transformers_takes_what_vllm_would_cut(tiny_w8a8: Path, cpu: Path, caplog: pytest.LogCaptureFixture) -> None:
    cpu.write_text(AVX2)
    with open_scorer(tiny_w8a8, scorer("vllm"), 64) as opened:
        assert isinstance(opened, TransformersScorer)
    assert "this CPU has no VNNI" in caplog.text
