import json
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from core.scoring import score
from students.export.gguf import UNCAPPED, write_gguf
from teachers.scorers.llama_cpp import GgufScorer
from tests.composing import scorer
from tests.tiny_models import FAMILIES, Family, tiny_judge

pytestmark = pytest.mark.timeout(300)
llama_cpp = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp, which runs GGUF, is not installed")
EXACT = scorer("transformers", dtype="fp32", batch_tokens=2048)
HEADS, KEY_HEADS, WIDTH, WINDOW = 2, 1, 32, 64
LENGTHS = (1, 7, 63, 64, 65, 66, 130, 300, 512)  # around Gemma's window, and the longest that is allowed
# llama.cpp looks GELU up in a table of fp16, Gemma's activation; SiLU it computes.
TOLERANCE = {"llama": 5e-5, "qwen2": 5e-5, "gemma2": 5e-3}
PROMPTS = [np.random.default_rng(n).integers(0, 560, size=n).tolist() for n in LENGTHS]


@pytest.fixture(scope="module", params=FAMILIES)
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Family, Path]]:
    yield request.param, tiny_judge(tmp_path_factory.mktemp(request.param), request.param)


def changed(judge: Path, folder: Path, **settings: Any) -> Path:
    """The same weights under a configuration with `settings`."""
    shutil.copytree(judge, folder)
    config = json.loads((judge / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def logits_of(folder: Path, prompts: Sequence[Sequence[int]] = PROMPTS) -> np.ndarray:
    """By the definition: transformers, eager attention, one prompt at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.inference_mode():
        hidden = [model.base_model(torch.tensor([prompt])).last_hidden_state[0, -1] for prompt in prompts]
        return model.score(torch.stack(hidden)).numpy()


def read_back(folder: Path) -> dict[str, np.ndarray]:
    """GGUF's tensors as floats, by their names there."""
    tensors = GGUFReader(folder / "backbone.gguf").tensors
    return {tensor.name: quants.dequantize(tensor.data, tensor.tensor_type) for tensor in tensors}


def rows_of_halves(heads: int) -> np.ndarray:
    """Where llama.cpp's rows lie in transformers': of each head's pairs (2i, 2i + 1), one row in each of its halves."""
    head, row = np.divmod(np.arange(heads * WIDTH), WIDTH)
    return head * WIDTH + row % 2 * (WIDTH // 2) + row // 2


def test_holds_every_weight_of_the_backbone(judge: tuple[Family, Path], tmp_path: Path) -> None:
    family, folder = judge
    before = {name: t.numpy() for name, t in load_file(folder / "model.safetensors").items() if name != "score.weight"}
    write_gguf(folder, tmp_path / "exact", "F32")
    write_gguf(folder, tmp_path / "rounded")
    exact, rounded = read_back(tmp_path / "exact"), read_back(tmp_path / "rounded")
    assert len(exact) == len(before) and exact.keys() == rounded.keys()
    short = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    short |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.down_proj": "ffn_down"}
    for module, name in short.items():
        weight = before[f"model.layers.1.{module}.weight"]
        if family == "llama" and name in ("attn_q", "attn_k"):
            weight = weight[rows_of_halves(HEADS if name == "attn_q" else KEY_HEADS)]
        assert (exact[f"blk.1.{name}.weight"] == weight).all(), name
        step = np.abs(weight.reshape(-1, 32)).max(1, keepdims=True) / 127
        off = np.abs(rounded[f"blk.1.{name}.weight"] - weight).reshape(-1, 32)
        assert (off <= 0.51 * step + 127 * step * 2**-11).all(), name  # the step itself is stored in fp16
    assert (exact["token_embd.weight"] == before["model.embed_tokens.weight"]).all()
    gain = before["model.norm.weight"] + (family == "gemma2")
    assert (exact["output_norm.weight"] == gain).all() and (rounded["output_norm.weight"] == gain).all()
    if family == "qwen2":
        assert (rounded["blk.0.attn_q.bias"] == before["model.layers.0.self_attn.q_proj.bias"]).all()


def test_is_a_judge_that_appears_whole(judge: tuple[Family, Path], tmp_path: Path) -> None:
    _, folder = judge
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.safetensors").write_bytes(b"older")
    write_gguf(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out/model.safetensors").exists()
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    head = load_file(folder / "model.safetensors")["score.weight"]
    assert torch.equal(load_file(tmp_path / "out/score.safetensors")["score.weight"], head)


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "rope_type 'llama3'"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding windows"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types in another order"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
        ("llama", {"model_type": "mistral"}, "of type mistral"),
    ],
)
def test_refuses_what_llama_cpp_computes_differently(
    family: Family, settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = changed(tiny_judge(tmp_path / "judge", family), tmp_path / "variant", **settings)
    with pytest.raises(ValueError, match=named):
        write_gguf(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@llama_cpp
def test_llama_cpp_gives_the_logits_of_transformers(judge: tuple[Family, Path], tmp_path: Path) -> None:
    family, folder = judge
    expected = logits_of(folder)
    write_gguf(folder, tmp_path / "exact", "F32")
    with GgufScorer(tmp_path / "exact", "fp32", max(LENGTHS)) as exact:
        assert np.abs(score(exact, PROMPTS) - expected).max() < TOLERANCE[family]
        backwards = score(exact, PROMPTS[::-1])[::-1]
        assert np.abs(backwards - expected).max() < TOLERANCE[family]
    write_gguf(folder, tmp_path / "rounded")
    with GgufScorer(tmp_path / "rounded", "auto", max(LENGTHS)) as rounded:
        drift = score(rounded, PROMPTS) - expected
    assert 0 < np.sqrt((drift**2).mean()) < 0.1 * expected.std()


@llama_cpp
def test_rotary_frequencies_of_llama_3_1(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    plain = tiny_judge(tmp_path / "judge", "llama")
    judge = changed(plain, tmp_path / "scaled", rope_parameters=rope)
    write_gguf(judge, tmp_path / "out", "F32")
    expected = logits_of(judge)
    assert np.abs(expected - logits_of(plain)).max() > 0.1
    with GgufScorer(tmp_path / "out", "fp32", max(LENGTHS)) as exact:
        assert np.abs(score(exact, PROMPTS) - expected).max() < TOLERANCE["llama"]


@llama_cpp
def test_gemma_without_softcapping(tmp_path: Path) -> None:
    capped = tiny_judge(tmp_path / "judge", "gemma2")
    judge = changed(capped, tmp_path / "open", attn_logit_softcapping=None)
    write_gguf(judge, tmp_path / "out", "F32")
    assert UNCAPPED * np.tanh(50 / UNCAPPED) == pytest.approx(50, abs=0.003)
    expected = logits_of(judge)
    assert np.abs(expected - logits_of(capped)).max() > 0.05
    with GgufScorer(tmp_path / "out", "fp32", max(LENGTHS)) as exact:
        assert np.abs(score(exact, PROMPTS) - expected).max() < TOLERANCE["gemma2"]


@llama_cpp
def test_refuses_prompts_and_folders(tiny_judge_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no backbone\.gguf"):
        GgufScorer(tiny_judge_llama, "fp32", 8)
    write_gguf(tiny_judge_llama, tmp_path / "out")
    with GgufScorer(tmp_path / "out", "fp32", 8) as judge:
        with pytest.raises(ValueError, match="prompt 1 has 9 tokens"):
            score(judge, [[1], [1] * 9])
        with pytest.raises(ValueError, match="invalid tokens"):
            score(judge, [[640]])
        assert score(judge, []).shape == (0, 3)
        assert score(judge, [[1] * 8]).shape == (1, 3)
