"""What judging on T4s rests on: fp16 that fits, and vLLM's int8 and fp16 kernels against transformers."""

import gc
import json
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from core.config import from_mapping
from core.scoring import score
from gpu_check.bare import composed
from gpu_check.judges import TINY, WIDTHS, conversations, random_judge
from gpu_check.results import LOGITS, Failed, Figures, Skip, close, relative
from students.export.half_precision import Range, fit_into_fp16
from teachers.scorers.config import VllmConfig
from teachers.scorers.transformers import LARGEST_INT8, TransformersScorer

MAX_TOKENS = 256
MARGIN = 2.0  # as conf/export has it
BEYOND = 3e4  # the root mean square of the residual stream: some of it passes 65504, and a small factor mends that
INT8 = 5e-2  # relative difference of logits: what fp16 rounds otherwise turns some of the int8 roundings
PLUGIN = "judge_fp16"


def fp16_margin(folder: Path, dry: bool) -> Figures:
    """A Gemma-2 that is not finite in fp16 is measured, rescaled, and then computes there what it does in fp32."""
    large, fitting, found = rescaled(folder, dry)
    exact, half = in_transformers(large, "fp32"), in_transformers(fitting, "fp16")
    if np.isfinite(in_transformers(large, "fp16")).all():
        raise Failed("the judge is finite in fp16 without rescaling: nothing is shown")
    off = {"logits": relative(torch.tensor(half), torch.tensor(exact))}
    close(off, LOGITS["fp16"])
    return {"largest": found.largest, "margin": found.margin, "factors": len(found.factors), **off}


def vllm_fp16(folder: Path, dry: bool) -> Figures:
    """The same judge in vLLM, whose refusal of Gemma-2 in fp16 the project's plugin lifts."""
    if PLUGIN not in {point.name for point in entry_points(group="vllm.general_plugins")}:
        raise Skip(f"vLLM's plugin {PLUGIN} is not installed: make setup installs it")
    large, fitting, found = rescaled(folder, dry)
    exact = in_transformers(large, "fp32")
    (fitting / "manifest.json").write_text(json.dumps({"extra": {"fp16_margin": found.margin}}))
    off = {"logits": relative(torch.tensor(in_vllm(fitting, "fp16")), torch.tensor(exact))}
    close(off, LOGITS["fp16"])
    return {"margin": found.margin, **off}


def vllm_w8a8(folder: Path, dry: bool) -> Figures:
    """A judge in int8, weights and activations, in vLLM as in transformers, which rounds as the kernels do."""
    judge = random_judge(folder / "judge", "llama", dry, torch.float16)
    plain = in_transformers(judge, "fp16")
    write_w8a8(judge)
    exact, found = in_transformers(judge, "fp16"), in_vllm(judge, "fp16")
    rounded = relative(torch.tensor(exact), torch.tensor(plain))
    off = {"logits": relative(torch.tensor(found), torch.tensor(exact))}
    close(off, INT8)
    return {**off, "by_rounding": rounded}


def rescaled(folder: Path, dry: bool) -> tuple[Path, Path, Range]:
    """A Gemma-2 whose residual stream is beyond fp16, the same one rescaled, and what was measured."""
    widths = TINY if dry else WIDTHS["gemma2"]
    gain = BEYOND / widths["hidden_size"] ** 0.5  # Gemma multiplies embeddings by the root of the width
    ends = ("embed_tokens", "post_attention_layernorm", "post_feedforward_layernorm")
    large = random_judge(folder / "large", "gemma2", dry, torch.float32, gains=dict.fromkeys(ends, gain))
    found = fit_into_fp16(large, folder / "fitting", prompts(), MARGIN)
    if not found.rescaled or found.margin < MARGIN:
        raise Failed(f"{found} of a judge that needs rescaling")
    return large, folder / "fitting", found


def write_w8a8(model: Path) -> None:
    """Round the linear layers of `model`, in place, to compressed-tensors' int8: one scale an output channel.

    llm-compressor writes the same, in an environment without vLLM.
    """
    tensors = load_file(model / "model.safetensors")
    for name in [n for n, t in tensors.items() if t.ndim == 2 and "embed_tokens" not in n and n != "score.weight"]:
        weight = tensors[name].float()
        scale = weight.abs().amax(1, keepdim=True) / LARGEST_INT8
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale.half()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    quantisation: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["score", "re:.*embed_tokens$"],
        "config_groups": {
            "w8a8": {
                "targets": ["Linear"],
                "weights": {**int8, "strategy": "channel", "dynamic": False},
                "input_activations": {**int8, "strategy": "token", "dynamic": True},
            }
        },
    }
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantisation}))


def prompts() -> list[list[int]]:
    return [ids for example in conversations(4, MAX_TOKENS) for ids in example.ids]


def in_transformers(model: Path, dtype: str) -> np.ndarray:
    """Logits [prompts, 3]; the device's memory is free again afterwards."""
    logits = score(TransformersScorer(model, scorer(dtype).in_transformers()), prompts())
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return logits


def in_vllm(model: Path, dtype: str) -> np.ndarray:
    from teachers.scorers.vllm import VllmScorer

    config = scorer(dtype)
    half = replace(config, engine_args={**config.engine_args, "gpu_memory_utilization": 0.5})
    with VllmScorer(model, half, MAX_TOKENS) as engine:
        return score(engine, prompts())


def scorer(dtype: str) -> VllmConfig:
    return from_mapping(VllmConfig, {**composed()["scorers"]["teacher"], "dtype": dtype})
