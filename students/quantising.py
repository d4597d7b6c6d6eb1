"""Quantising a merged judge for serving, through llm-compressor."""

import json
import shutil
from pathlib import Path

from safetensors import safe_open

from distill.models import put
from distill.runs import MANIFEST
from students.merging import SCORE

UNTOUCHED = (SCORE, "re:.*embed_tokens$")  # in llm-compressor's notation; norms and biases are left alone anyway


def quantise_w8a8(model: Path, out: Path) -> None:
    """Write `out`: the judge in `model` with int8 linear layers, as transformers and vLLM load it; no data is needed.

    Weights are rounded to int8 with one scale an output channel; activations are rounded at run time with one scale a
    token (llm-compressor's scheme W8A8). Embeddings, norms and the score head stay as they were, bit by bit. `out`
    appears at once and complete, in the place of an older one. Raises `ValueError` where `model` is quantised already.
    """
    # Not through `oneshot`: in bf16 that returns other norms for Gemma, because it goes from w to 1 + w and back.
    from llmcompressor import model_free_ptq
    from loguru import logger

    if "quantization_config" in json.loads((model / "config.json").read_text()):
        raise ValueError(f"{model} is quantised already; give the merged model")
    for library in ("llmcompressor", "compressed_tensors"):
        logger.disable(library)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model_free_ptq(model, partial, scheme="W8A8", ignore=UNTOUCHED)
    (partial / MANIFEST).unlink(
        missing_ok=True
    )  # it copies every file of `model`, and that one tells of another artefact
    _check(model, partial)
    put(partial, out)


def _check(before: Path, after: Path) -> None:
    matrices = {name for name, (_, dimensions) in _tensors(before).items() if dimensions == 2}
    linears = {name for name in matrices if "embed_tokens" not in name and not name.startswith(SCORE)}
    found = _tensors(after)
    int8 = {name for name, (dtype, _) in found.items() if dtype == "I8"}
    assert int8 == linears, f"int8 layers and linear layers differ: {sorted(int8 ^ linears)}"
    assert all(name.replace(".weight", ".weight_scale") in found for name in linears), "a quantised layer has no scale"
    assert found[f"{SCORE}.weight"][0] in ("F32", "BF16", "F16"), f"the score head is {found[f'{SCORE}.weight'][0]}"


def _tensors(folder: Path) -> dict[str, tuple[str, int]]:
    """Tensor name -> (dtype as safetensors names it, number of dimensions)."""
    tensors: dict[str, tuple[str, int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors |= {name: (view.get_dtype(), len(view.get_shape())) for name, view in views.items()}
    return tensors
