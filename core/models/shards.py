"""Weights in safetensors, tensor by tensor from file to file: a model is worked on in far less memory than it takes."""

import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from core.errors import UserError

SHARD_BYTES = 5 * 10**9
PIECE = 2**22  # elements that are converted and written at a time
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # names in our configuration
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # names in a safetensors header


def locate(base: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it. Raises `UserError` naming a file that the index asks for in vain."""
    if (base / INDEX).exists():
        try:
            weight_map: dict[str, str] = json.loads((base / INDEX).read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError) as error:
            raise UserError(f"{base / INDEX} is no index of weights; download or copy it again") from error
        for name, file in weight_map.items():
            if not (base / file).exists():
                raise UserError(
                    f"{base / file} is not there, but {INDEX} places {name} in it; download or copy it again"
                )
        return {name: base / file for name, file in weight_map.items()}
    if not (base / SINGLE).exists():
        raise UserError(f"{base} holds no safetensors weights (neither {SINGLE} nor {INDEX})")
    with opened(base / SINGLE) as file:
        return dict.fromkeys(file.keys(), base / SINGLE)


def read_shapes(base: Path, sources: Mapping[str, Path]) -> dict[str, list[int]]:
    """Tensor name -> shape. Raises `UserError` naming a tensor that is missing, and those that are no plain floats."""
    shapes, others = {}, []
    for path in sorted(set(sources.values())):
        with opened(path) as file:
            held = set(file.keys())
            for name in (n for n, p in sources.items() if p == path):
                if name not in held:
                    raise UserError(f"{path} lacks {name}, which {INDEX} places in it; download or copy both again")
                view = file.get_slice(name)
                shapes[name] = view.get_shape()
                if view.get_dtype() not in STORED.values():
                    others.append(f"{name} ({view.get_dtype()})")
    if others:
        raise UserError(f"{base}: these tensors are no plain floats: {', '.join(others)}; give the unquantised base")
    return shapes


def stored(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Tensor -> (dtype as safetensors names it, shape) of all files in a folder, of any kind.

    Raises `UserError` naming what its index has and the files have not.
    """
    tensors: dict[str, tuple[str, list[int]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with opened(path) as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors |= {name: (view.get_dtype(), view.get_shape()) for name, view in views.items()}
    if (folder / INDEX).exists() and (missing := sorted(set(locate(folder)) - set(tensors))):
        raise UserError(f"{folder} lacks {missing[0]}, which {INDEX} has; download or copy it again")
    return tensors


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Tensor -> its type, of a model in plain floats."""
    floats = {name: dtype for dtype, name in STORED.items()}
    return {tensor: floats[dtype] for tensor, (dtype, _) in stored(folder).items()}


def read_tensor(sources: Mapping[str, Path], name: str) -> torch.Tensor:
    """One tensor, mapped from the file that holds it: what of it was read leaves memory together with the tensor."""
    with opened(sources[name]) as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """safetensors' reader of a file. Raises `UserError` saying what a broken one is and what it should be."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        blob = path.resolve().name  # in the hub's cache a file is a link to one that is named by its sha256
        digest = f" (sha256 {blob})" if re.fullmatch("[0-9a-f]{64}", blob) else ""
        raise UserError(f"{path} is broken: {_fault(path) or error}; download or copy it again{digest}") from error


def write_weights(
    folder: Path,
    layout: Mapping[str, list[int]],
    tensor: Callable[[str], torch.Tensor],
    dtype: torch.dtype | Mapping[str, torch.dtype],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the tensors of `layout` (name -> shape) in files of at most `shard_bytes` (or one tensor), and an index.

    They are asked for one by one and stored as `dtype`, one for all or one for each name.
    """
    dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(layout, dtype)
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in layout.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    one = len(shards) == 1
    files = [SINGLE if one else f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        _write_shard(folder / file, {name: layout[name] for name in names}, tensor, dtypes)
    if not one:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        _write_index(folder, weight_map, sum(sizes.values()))


def rewrite(model: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> None:
    """Write the weights of `model` into the folder `out`: file by file, what `change` makes of its tensors."""
    weight_map: dict[str, str] = {}
    size = 0
    for path in sorted(model.glob("*.safetensors")):
        tensors = {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}
        save_file(tensors, out / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if (model / INDEX).exists():
        _write_index(out, weight_map, size)


def _write_index(folder: Path, weight_map: Mapping[str, str], size: int) -> None:
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_shard(
    path: Path,
    layout: Mapping[str, list[int]],
    tensor: Callable[[str], torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    # By hand, because save_file wants all tensors at once: https://github.com/huggingface/safetensors#format
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names = sorted(layout, key=lambda name: -dtypes[name].itemsize)  # widest first, so that every tensor is aligned
    end = 0
    for name in names:
        begin, end = end, end + math.prod(layout[name]) * dtypes[name].itemsize
        header[name] = {"dtype": STORED[dtypes[name]], "shape": layout[name], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            for piece in tensor(name).flatten().split(PIECE):  # an embedding need not be held in both types
                file.write(piece.to(dtypes[name]).view(torch.uint8).numpy().data)
        assert file.tell() == 8 + len(text) + end, path


def _fault(path: Path) -> str | None:
    """What is wrong with a safetensors file, by its header and length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(min(length, size)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError):
            return f"its {size} bytes do not begin with a header of safetensors"
    expected = 8 + length + max(ends, default=0)
    return f"it has {size} bytes where its header asks for {expected}" if size != expected else None
