"""Weights in safetensors, tensor by tensor from file to file: a model is worked on in far less memory than it takes."""

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

SHARD_BYTES = 5 * 10**9
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # names in a safetensors header


def locate(base: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    if (base / INDEX).exists():
        return {name: base / file for name, file in json.loads((base / INDEX).read_text())["weight_map"].items()}
    if not (base / SINGLE).exists():
        raise ValueError(f"{base} holds no safetensors weights (neither {SINGLE} nor {INDEX})")
    with safe_open(base / SINGLE, "pt") as file:
        return dict.fromkeys(file.keys(), base / SINGLE)


def read_shapes(base: Path, sources: Mapping[str, Path]) -> dict[str, list[int]]:
    """Tensor name -> shape. Raises `ValueError` naming tensors that are no plain floats."""
    shapes, others = {}, []
    for path in sorted(set(sources.values())):
        with safe_open(path, "pt") as file:
            for name in (n for n, p in sources.items() if p == path):
                view = file.get_slice(name)
                shapes[name] = view.get_shape()
                if view.get_dtype() not in STORED.values():
                    others.append(f"{name} ({view.get_dtype()})")
    if others:
        raise ValueError(f"{base}: these tensors are no plain floats: {', '.join(others)}; give the unquantised base")
    return shapes


def read_tensor(sources: Mapping[str, Path], name: str) -> torch.Tensor:
    """One tensor from the file that holds it."""
    with safe_open(sources[name], "pt") as file:
        return file.get_tensor(name)


def write_weights(
    folder: Path,
    layout: Mapping[str, list[int]],
    tensor: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the tensors of `layout` (name -> shape) in files of at most `shard_bytes` (or one tensor), and an index."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in layout.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    one = len(shards) == 1
    files = [SINGLE if one else f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        _write_shard(folder / file, {name: layout[name] for name in names}, tensor, dtype)
    if not one:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_shard(
    path: Path, layout: Mapping[str, list[int]], tensor: Callable[[str], torch.Tensor], dtype: torch.dtype
) -> None:
    # By hand, because save_file wants all tensors at once: https://github.com/huggingface/safetensors#format
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in layout.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": STORED[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in layout:
            file.write(tensor(name).to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
        assert file.tell() == 8 + len(text) + end, path
