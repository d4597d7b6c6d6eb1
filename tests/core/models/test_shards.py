"""Weights that stream from file to file arrive as they were, and broken files say what is wrong with them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from core.models.shards import INDEX, PIECE, SINGLE, locate, read_shapes, read_tensor, write_weights

WEIGHTS = {f"layers.{i}.weight": torch.randn(3 + i, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)}


def write(folder: Path, dtype: torch.dtype = torch.float32, shard_bytes: int = 150) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, {n: [*w.shape] for n, w in WEIGHTS.items()}, WEIGHTS.__getitem__, dtype, shard_bytes)
    return folder


@pytest.mark.timeout(60)
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 7), max_size=3), st.sampled_from(["float32", "float16", "bfloat16"]))),
    st.integers(1, 2_000),
)
def test_every_tensor_is_stored_in_its_own_type(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[list[int], str]], shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    weights = {f"t{i}": torch.randn(shape) for i, (shape, _) in enumerate(tensors)}
    dtypes = {f"t{i}": getattr(torch, dtype) for i, (_, dtype) in enumerate(tensors)}
    layout = {name: [*weight.shape] for name, weight in weights.items()}
    write_weights(folder, layout, weights.__getitem__, dtypes, shard_bytes)
    files = [load_file(path) for path in folder.glob("*.safetensors")]
    assert all(len(file) < 2 or sum(t.nbytes for t in file.values()) <= shard_bytes for file in files)
    found = {name: tensor for file in files for name, tensor in file.items()}
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == dtypes[name] and torch.equal(found[name], weight.to(dtypes[name]))
    sources = locate(folder)
    assert read_shapes(folder, sources) == layout
    assert all(torch.equal(read_tensor(sources, name), tensor) for name, tensor in found.items())


def test_every_tensor_lies_where_its_type_may_lie(tmp_path: Path) -> None:
    weights = {"odd": torch.ones(3), "wide": torch.ones(2), "last": torch.ones(1)}
    dtypes = {"odd": torch.float16, "wide": torch.float32, "last": torch.bfloat16}
    write_weights(tmp_path, {n: [*w.shape] for n, w in weights.items()}, weights.__getitem__, dtypes)
    data = (tmp_path / SINGLE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert all((8 + length + header[name]["data_offsets"][0]) % dtype.itemsize == 0 for name, dtype in dtypes.items())


def test_a_tensor_of_several_pieces_is_whole(tmp_path: Path) -> None:
    long = torch.arange(PIECE + 3, dtype=torch.float32)
    write_weights(tmp_path, {"long": [*long.shape]}, {"long": long}.__getitem__, torch.bfloat16)
    assert torch.equal(load_file(tmp_path / SINGLE)["long"], long.bfloat16())


@pytest.mark.parametrize(
    ("left", "fault"),
    [
        (-1, r"it has \d+ bytes where its header asks for \d+"),
        (-60, r"it has \d+ bytes where its header asks for \d+"),
        (40, "its 40 bytes do not begin with a header of safetensors"),
        (0, "its 0 bytes do not begin with a header of safetensors"),
    ],
)
def test_a_shard_that_was_cut_off_is_named_with_the_length_it_should_have(
    left: int, fault: str, tmp_path: Path
) -> None:
    write(tmp_path)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:left])
    with pytest.raises(ValueError, match=rf"{shard} is broken: {fault}; download or copy it again$") as error:
        read_shapes(tmp_path, locate(tmp_path))
    assert left >= 0 or f"has {len(whole) + left} bytes where its header asks for {len(whole)}" in str(error.value)


def test_what_stands_for_a_file_is_no_file(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n")
    with pytest.raises(ValueError, match=f"{SINGLE} is broken: .* do not begin with a header"):
        locate(tmp_path)


def test_a_file_of_the_hub_s_cache_has_a_known_sha256(tmp_path: Path) -> None:
    digest = "0123456789abcdef" * 4
    (tmp_path / digest).write_bytes(b"half")
    (tmp_path / SINGLE).symlink_to(tmp_path / digest)
    with pytest.raises(ValueError, match=rf"download or copy it again \(sha256 {digest}\)"):
        locate(tmp_path)


def test_a_missing_shard_is_named_with_a_tensor_that_it_holds(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"model-00003-of-00003\.safetensors is not there, but .* layers\.3\.weight in it"
    ):
        locate(tmp_path)


def test_a_shard_of_another_model_lacks_a_tensor(tmp_path: Path) -> None:
    write(tmp_path)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    save_file({"layers.9.weight": torch.ones(2, 2)}, shard)
    with pytest.raises(ValueError, match=rf"{shard} lacks layers\.2\.weight, which {INDEX} places in it; download"):
        read_shapes(tmp_path, locate(tmp_path))


@pytest.mark.parametrize("text", ["{", json.dumps({"metadata": {}})])
def test_a_broken_index_is_named(text: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=f"{INDEX} is no index of weights"):
        locate(tmp_path)
