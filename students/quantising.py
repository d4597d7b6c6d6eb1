"""Quantising a merged judge for serving, through llm-compressor."""

import shutil
import warnings
from pathlib import Path

from safetensors import safe_open

from students.merging import SCORE, copy_tokenizer


def quantise_w8a8(model: Path, out: Path) -> None:
    """Write `out`: the judge in `model` with int8 linear layers, as transformers and vLLM load it; no data is needed.

    Weights are rounded to int8 with one scale an output channel; activations are rounded at run time with one scale a
    token (llm-compressor's scheme W8A8, docs.vllm.ai/projects/llm-compressor). Embeddings, norms and the score head
    stay as they were. `out` appears at once and complete, in the place of an older one.
    """
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from loguru import logger
    from transformers import AutoModelForSequenceClassification

    judge = AutoModelForSequenceClassification.from_pretrained(model, dtype="auto")
    if hasattr(judge.config, "quantization_config"):
        raise ValueError(f"{model} is quantised already; give the merged model")
    linears = {name for name, module in judge.named_modules() if isinstance(module, torch.nn.Linear)} - {SCORE}
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for library in ("llmcompressor", "compressed_tensors"):
        logger.disable(library)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*offloaded modules.*"
        )  # llm-compressor's way of holding the weights
        oneshot(model=judge, recipe=QuantizationModifier(targets="Linear", scheme="W8A8", ignore=[SCORE]))
        judge.save_pretrained(partial, save_compressed=True)
    copy_tokenizer(model, partial)
    _check(partial, linears)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _check(folder: Path, linears: set[str]) -> None:
    dtypes: dict[str, str] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            dtypes |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    int8 = {name.removesuffix(".weight") for name, dtype in dtypes.items() if dtype == "I8"}
    assert int8 == linears, f"int8 layers {sorted(int8 ^ linears)} differ from the linear layers"
    assert all(f"{name}.weight_scale" in dtypes for name in linears), "a quantised layer has no scale"
    assert dtypes[f"{SCORE}.weight"].startswith(("F", "BF")), f"the score head is stored as {dtypes[f'{SCORE}.weight']}"
