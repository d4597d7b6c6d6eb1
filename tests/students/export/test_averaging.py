"""Averages of adapters are what they are called, in PEFT's own reading of what was written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from students.export.averaging import average_adapters, write_adapter
from students.merging import Adapter, merge_adapter, read_adapter
from tests.students.test_merging import assert_equal, train_randomly

FOLDS = 3
pytestmark = pytest.mark.timeout(300)


def random_adapter(seed: int, scale: float = 2.0, rank: int = 4, shared: float = 0.0) -> Adapter:
    """Factors of which the share `shared` is the same for all seeds."""

    def draw(shape: Sequence[int]) -> torch.Tensor:
        own, common = torch.Generator().manual_seed(seed + 1), torch.Generator().manual_seed(0)
        return shared * torch.randn(shape, generator=common) + (1 - shared) * torch.randn(shape, generator=own)

    factors = {name: (draw((rank, 12)), draw((10, rank))) for name in ("model.layers.0.x", "model.layers.1.y")}
    return Adapter(factors, "score", draw((3, 12)), scale, {})


def change(adapter: Adapter, module: str) -> torch.Tensor:
    a, b = adapter.factors[module]
    return adapter.scale * b @ a


def mean_change(folds: dict[str, Adapter], module: str) -> torch.Tensor:
    return torch.stack([change(fold, module) for fold in folds.values()]).mean(0)


@pytest.fixture
def folds() -> dict[str, Adapter]:
    return {f"fold={k}": random_adapter(k, scale=1.0 + k) for k in range(FOLDS)}


def test_delta_is_the_mean_change(folds: dict[str, Adapter]) -> None:
    average = average_adapters(folds, "delta")
    for module in folds["fold=0"].factors:
        torch.testing.assert_close(change(average.adapter, module), mean_change(folds, module))
    assert average.energy == 1.0
    torch.testing.assert_close(average.adapter.score, torch.stack([f.score for f in folds.values()]).mean(0))


def test_svd_is_the_nearest_of_its_rank_and_says_what_it_keeps(folds: dict[str, Adapter]) -> None:
    average = average_adapters(folds, "svd")
    kept = total = 0.0
    for module, (a, _) in average.adapter.factors.items():
        exact = mean_change(folds, module).double()
        u, values, v = torch.linalg.svd(exact)
        assert a.shape[0] == 4
        nearest = u[:, :4] @ values[:4].diag() @ v[:4]
        torch.testing.assert_close(change(average.adapter, module).double(), nearest, atol=1e-5, rtol=1e-4)
        kept, total = kept + values[:4].square().sum().item(), total + values.square().sum().item()
    assert average.energy == pytest.approx(kept / total) and 0.2 < kept / total < 0.99


def test_factors_are_the_winner_s_and_not_the_mean_change() -> None:
    folds = {f"fold={k}": random_adapter(k) for k in range(FOLDS)}
    average = average_adapters(folds, "factors").adapter
    a, b = average.factors["model.layers.0.x"]
    torch.testing.assert_close(a, torch.stack([f.factors["model.layers.0.x"][0] for f in folds.values()]).mean(0))
    torch.testing.assert_close(b, torch.stack([f.factors["model.layers.0.x"][1] for f in folds.values()]).mean(0))
    assert not torch.allclose(change(average, "model.layers.0.x"), mean_change(folds, "model.layers.0.x"), atol=0.1)
    alike = {f"fold={k}": random_adapter(k, shared=0.999) for k in range(FOLDS)}  # as folds of one start are
    near = average_adapters(alike, "factors").adapter
    torch.testing.assert_close(
        change(near, "model.layers.0.x"), mean_change(alike, "model.layers.0.x"), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("method", ["factors", "delta", "svd"])
def test_equal_folds_average_to_themselves_as_written(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    expected = train_randomly(tiny_llama, tmp_path / "adapter", use_rslora=True)
    adapter = read_adapter(tmp_path / "adapter")
    average = average_adapters({"one": adapter, "other": adapter}, method).adapter
    write_adapter(average, tmp_path / "adapter", tmp_path / "average")
    merge_adapter(tiny_llama, tmp_path / "average", tmp_path / "merged", torch.float32)
    assert_equal(tmp_path / "merged", expected)


@pytest.mark.parametrize("method", ["factors", "delta", "svd"])
def test_the_order_of_folds_makes_no_difference(method: str) -> None:
    folds = {f"fold={k}": random_adapter(k) for k in range(FOLDS)}
    one = average_adapters(folds, method)
    other = average_adapters(dict(reversed(folds.items())), method)
    for module in folds["fold=0"].factors:
        torch.testing.assert_close(change(one.adapter, module), change(other.adapter, module), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.adapter.score, other.adapter.score)


def test_magnitudes_of_dora_are_averaged_as_written(tiny_llama: Path, tmp_path: Path) -> None:
    expected = train_randomly(tiny_llama, tmp_path / "adapter", use_dora=True)
    adapter = read_adapter(tmp_path / "adapter")
    doubled, none = ({module: s * m for module, m in adapter.magnitudes.items()} for s in (2, 0))
    folds = {name: replace(adapter, magnitudes=m) for name, m in {"doubled": doubled, "none": none}.items()}
    write_adapter(average_adapters(folds, "factors").adapter, tmp_path / "adapter", tmp_path / "average")
    merge_adapter(tiny_llama, tmp_path / "average", tmp_path / "merged", torch.float32)
    assert_equal(tmp_path / "merged", expected)


def test_folds_that_do_not_fit_are_named(folds: dict[str, Adapter]) -> None:
    with pytest.raises(ValueError, match=r"fold=0 and wide cannot be averaged: they differ in model.layers.0.x"):
        average_adapters({**folds, "wide": random_adapter(9, rank=8)}, "delta")
    with pytest.raises(
        ValueError, match=r"factors of scales \[1.0, 2.0, 3.0\] have no mean: take export.average=delta"
    ):
        average_adapters(folds, "factors")
    dora = Adapter({"m": (torch.ones(1, 2), torch.ones(2, 1))}, "score", torch.ones(3, 2), 1.0, {"m": torch.ones(2)})
    with pytest.raises(ValueError, match="DoRA"):
        average_adapters({"one": dora, "two": dora}, "svd")
