import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from students.quantising import quantise_w8a8
from tests.tiny_models import FAMILIES, Family, tiny_judge

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, tuple[Path, Path]]:
    """Per family a judge and the same judge quantised."""
    folders = {}
    for family in FAMILIES:
        judge = tiny_judge(tmp_path_factory.mktemp(family), family)
        folders[family] = judge, judge.with_name(f"{judge.name}-w8a8")
        quantise_w8a8(*folders[family])
    return folders


@pytest.mark.parametrize("family", FAMILIES)
def test_rounds_every_linear_layer_to_the_nearest_step_and_nothing_else(
    family: Family, judges: dict[Family, tuple[Path, Path]]
) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in judges[family])
    int8 = {name for name, tensor in after.items() if tensor.dtype == torch.int8}
    assert int8 == {name for name in before if name.endswith("_proj.weight")}
    for name, weight in before.items():
        if name in int8:
            step = after[name.replace(".weight", ".weight_scale")]
            assert step.shape == (weight.shape[0], 1)
            assert ((after[name] * step - weight).abs() <= 0.501 * step).all(), name
        else:
            assert torch.equal(after[name], weight), name


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_it_whole(family: Family, judges: dict[Family, tuple[Path, Path]]) -> None:
    before, after = judges[family]
    assert (after / "tokenizer.json").read_bytes() == (before / "tokenizer.json").read_bytes()
    assert {path.name for path in after.parent.iterdir()}.isdisjoint({f".{after.name}.partial"})
    _, info = AutoModelForSequenceClassification.from_pretrained(after, dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_small_norms_of_gemma_survive_in_bf16(judges: dict[Family, tuple[Path, Path]], tmp_path: Path) -> None:
    source = shutil.copytree(judges["gemma2"][0], tmp_path / "source")
    AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    (source / "manifest.json").write_text("{}")
    quantise_w8a8(source, tmp_path / "w8a8")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "w8a8"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items() if "norm" in name)
    assert not (tmp_path / "w8a8/manifest.json").exists()


def test_replaces_what_is_in_the_way(judges: dict[Family, tuple[Path, Path]], tmp_path: Path) -> None:
    (tmp_path / "w8a8").mkdir()
    (tmp_path / "w8a8/model-00001-of-00002.safetensors").write_bytes(b"half")
    quantise_w8a8(judges["qwen2"][0], tmp_path / "w8a8")
    assert {path.name for path in tmp_path.iterdir()} == {"w8a8"}
    assert {path.name for path in (tmp_path / "w8a8").iterdir()} == {path.name for path in judges["qwen2"][1].iterdir()}


def test_refuses_to_quantise_twice(judges: dict[Family, tuple[Path, Path]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantised already"):
        quantise_w8a8(judges["llama"][1], tmp_path / "twice")
