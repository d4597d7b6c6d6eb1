"""Judges whose activations are too large for fp16, by plan."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

STREAM = dict.fromkeys(("embed_tokens", "post_attention_layernorm", "post_feedforward_layernorm"), 2e4)


def blown_up(model: Path, folder: Path, gains: Mapping[str, float], **settings: object) -> Path:
    """A copy of `model` in which layers whose names end so give that many times as much; `settings` in config.json."""
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        for end, gain in gains.items():
            if name.endswith(f"{end}.weight"):
                tensors[name] = (1 + tensor) * gain - 1 if "norm" in end else tensor * gain  # as Gemma's norms are
    shutil.copytree(model, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def prompts(lengths: tuple[int, ...] = (5, 40, 100, 200)) -> list[list[int]]:
    """Token ids; some prompts are longer than tiny Gemma-2's window."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 560, (length,), generator=generator).tolist() for length in lengths]
