import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from students.export.gptq import gptq_layer, repack_gptq
from students.export.quantising import quantise
from tests.composing import configured
from tests.tiny_models import FAMILIES, Family, tiny_judge

pytestmark = pytest.mark.timeout(300)
BITS = {"w8a16": 8, "w4a16": 4}
SETTINGS = configured("+exp=demo").export.quantisation
PROMPTS = [np.random.default_rng(seed).integers(0, 560, size=48).tolist() for seed in range(4)]


def unpack(words: torch.Tensor, bits: int, axis: int) -> torch.Tensor:
    """Integers of `bits` bits, which lie along `axis` in int32 words from the lowest bits up."""
    values = np.moveaxis(words.numpy().view(np.uint32), axis, -1)
    fields = [(values >> shift) & (2**bits - 1) for shift in range(0, 32, bits)]
    integers = np.stack(fields, -1).reshape(*values.shape[:-1], -1).astype(np.int64)
    return torch.from_numpy(np.moveaxis(integers, -1, axis))


def dequantise(tensors: dict[str, torch.Tensor], layer: str, bits: int) -> torch.Tensor:
    """A layer's weight [out, in] by the layout's definition, whose stored zeros are one too low."""
    q = unpack(tensors[f"{layer}.qweight"], bits, axis=0)
    zeros = unpack(tensors[f"{layer}.qzeros"], bits, axis=1) + 1
    group = tensors[f"{layer}.g_idx"].long()
    return (tensors[f"{layer}.scales"].float()[group] * (q - zeros[group])).T


@pytest.fixture(scope="module", params=FAMILIES)
def half_judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge in fp16, as exports for T4s are: its scales are fp16 before they are repacked."""
    family: Family = request.param
    judge = tiny_judge(tmp_path_factory.mktemp(family), family)
    AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float16).save_pretrained(judge)
    return judge


@pytest.mark.parametrize("format", BITS)
def test_holds_exactly_the_weights_that_compressed_tensors_reads(half_judge: Path, format: str, tmp_path: Path) -> None:
    quantise(half_judge, tmp_path / "packed", format, SETTINGS, PROMPTS)
    repack_gptq(tmp_path / "packed", tmp_path / "gptq")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    with torch.inference_mode():
        model(torch.tensor([PROMPTS[0]]))  # compressed-tensors unpacks weights at their first use
    expected = model.state_dict()
    found = load_file(tmp_path / "gptq/model.safetensors")
    layers = {name.removesuffix(".qweight") for name in found if name.endswith(".qweight")}
    assert len(layers) == 14
    for layer in layers:
        assert torch.equal(dequantise(found, layer, BITS[format]), expected[f"{layer}.weight"]), layer
    original = load_file(half_judge / "model.safetensors")
    parts = {f"{layer}.{part}" for layer in layers for part in ("qweight", "scales", "qzeros", "g_idx")}
    assert found.keys() == {n for n in original if n.removesuffix(".weight") not in layers} | parts
    assert all(torch.equal(found[name], original[name]) for name in found.keys() & original.keys())
    assert "score.weight" in found


@pytest.mark.parametrize("format", BITS)
def test_describes_itself(tiny_judge_llama: Path, format: str, tmp_path: Path) -> None:
    quantise(tiny_judge_llama, tmp_path / "packed", format, SETTINGS, PROMPTS)
    (tmp_path / "gptq").mkdir()
    (tmp_path / "gptq/older").touch()
    repack_gptq(tmp_path / "packed", tmp_path / "gptq")
    assert {path.name for path in tmp_path.iterdir()} == {"packed", "gptq"}
    assert not (tmp_path / "gptq/older").exists()
    description = json.loads((tmp_path / "gptq/config.json").read_text())["quantization_config"]
    scales = load_file(tmp_path / "gptq/model.safetensors")["model.layers.0.mlp.down_proj.scales"]
    assert description["quant_method"] == "gptq" and description["bits"] == BITS[format]
    assert description["sym"] and not description["desc_act"]
    assert scales.dtype == torch.float16 and scales.shape[0] * description["group_size"] == 128
    assert (tmp_path / "gptq/tokenizer.json").read_bytes() == (tiny_judge_llama / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("bits", [4, 8])
def test_one_scale_for_a_whole_row(bits: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    q = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (16, 64), dtype=torch.int8)
    scale = torch.rand(16, 1).half()
    layer = {f"x.{n}": t for n, t in gptq_layer(pack_to_int32(q, bits), scale, bits, -1).items()}
    assert layer["x.g_idx"].unique().tolist() == [0]
    assert torch.equal(dequantise(layer, "x", bits), scale.float() * q)


def test_refuses_other_layouts(tiny_judge_llama: Path, tmp_path: Path) -> None:
    quantise(tiny_judge_llama, tmp_path / "w8a8", "w8a8", SETTINGS, [])
    for folder in (tmp_path / "w8a8", tiny_judge_llama):
        with pytest.raises(ValueError, match="give what w8a16 or w4a16 wrote"):
            repack_gptq(folder, tmp_path / "gptq")
    with pytest.raises(ValueError, match="12 outputs of 4 bits"):
        gptq_layer(torch.zeros(12, 8, dtype=torch.int32), torch.ones(12, 1), 4, -1)
    assert not (tmp_path / "gptq").exists()
