from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
def test_the_folder_is_whole(family: Family, judges: dict[Family, tuple[Path, Path]]) -> None:
    before, after = judges[family]
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= {path.name for path in after.iterdir()}
    assert (after / "tokenizer.json").read_bytes() == (before / "tokenizer.json").read_bytes()
    assert not list(after.parent.glob(".*.partial"))


def test_refuses_to_quantise_twice(judges: dict[Family, tuple[Path, Path]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantised already"):
        quantise_w8a8(judges["llama"][1], tmp_path / "twice")
