"""Adapters of several folds as one: the mean of their factors, or of the changes that they make to the weights.

    factors   A = mean_k A_k, B = mean_k B_k: what the LMSYS winner did. It is not the mean change of the weights, as
              mean(B) mean(A) holds products of different folds; that is harmless only where the folds began as one.
    delta     dW = mean_k s_k B_k A_k, exactly, as factors of rank K r side by side
    svd       the nearest change of rank r to that one (Eckart and Young 1936)

The score head is the plain mean.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from core.errors import UserError
from students.merging import MAGNITUDE, PEFT_PREFIX, Adapter


@dataclass(frozen=True)
class Average:
    """`energy` is the share of the mean change's squared norm that is kept: 1 for `delta`; None for `factors`."""

    adapter: Adapter
    energy: float | None


def average_adapters(adapters: Mapping[str, Adapter], method: str) -> Average:
    """The average of adapters by name; `method` is one of the three above.

    Raises `UserError` naming adapters whose modules or shapes differ, and for DoRA, whose magnitudes belong to another
    weight than the mean's, unless by `factors`.
    """
    (first, expected), *others = [(name, _shapes(adapter)) for name, adapter in adapters.items()]
    for name, shapes in others:
        if differing := sorted(m for m in shapes.keys() | expected.keys() if shapes.get(m) != expected.get(m)):
            raise UserError(
                f"{first} and {name} cannot be averaged: they differ in {', '.join(differing[:3])} "
                f"({len(differing)} modules); train the folds with one student configuration"
            )
    folds = [*adapters.values()]
    if method != "factors" and any(fold.magnitudes for fold in folds):
        raise UserError(
            f"export.average={method} of DoRA adapters: they have no common change of weights; take factors"
        )
    averaged = {"factors": _mean_factors, "delta": _mean_change, "svd": _nearest_change}[method]
    return averaged(folds)


def write_adapter(average: Adapter, like: Path, folder: Path) -> None:
    """Write `average` in PEFT's layout, with the configuration of the adapter folder `like` but for rank and scale."""
    config = json.loads((like / "adapter_config.json").read_text())
    rank = next(iter(average.factors.values()))[0].shape[0]
    config |= {"r": rank, "lora_alpha": average.scale * rank, "use_rslora": False}
    tensors = {f"{average.head}.weight": average.score}
    for module, (a, b) in average.factors.items():
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    tensors |= {f"{module}{MAGNITUDE}": magnitude for module, magnitude in average.magnitudes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    stored = {PEFT_PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _mean_factors(folds: Sequence[Adapter]) -> Average:
    if len({fold.scale for fold in folds}) > 1:
        raise UserError(f"factors of scales {sorted({f.scale for f in folds})} have no mean: take export.average=delta")
    factors = {
        module: (_mean([f.factors[module][0] for f in folds]), _mean([f.factors[module][1] for f in folds]))
        for module in folds[0].factors
    }
    magnitudes = {module: _mean([f.magnitudes[module] for f in folds]) for module in folds[0].magnitudes}
    return Average(replace(folds[0], factors=factors, score=_mean_score(folds), magnitudes=magnitudes), None)


def _mean_change(folds: Sequence[Adapter]) -> Average:
    return Average(_by_module(folds, lambda a, b: (a, b)), 1.0)


def _nearest_change(folds: Sequence[Adapter]) -> Average:
    kept = total = 0.0

    def cut(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal kept, total
        rank = a.shape[0] // len(folds)
        # b a = q_b (r_b r_a^T) q_a^T: the small matrix between has the singular values of the large one.
        q_b, r_b = torch.linalg.qr(b.double())
        q_a, r_a = torch.linalg.qr(a.double().T)
        u, values, v = torch.linalg.svd(r_b @ r_a.T)
        kept += values[:rank].square().sum().item()
        total += values.square().sum().item()
        root = values[:rank].sqrt()
        return (root[:, None] * (v[:rank] @ q_a.T)).float(), (q_b @ u[:, :rank] * root).float()

    adapter = _by_module(folds, cut)
    return Average(adapter, kept / total if total else 1.0)


def _by_module(
    folds: Sequence[Adapter], change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> Adapter:
    """`change` of A [K r, in] and B [out, K r], whose product is a module's mean change, as an adapter of scale 1."""
    factors = {}
    for module in folds[0].factors:
        a = torch.cat([f.factors[module][0].float() for f in folds])
        b = torch.cat([f.scale / len(folds) * f.factors[module][1].float() for f in folds], dim=1)
        factors[module] = change(a, b)
    return Adapter(factors, folds[0].head, _mean_score(folds), 1.0, {})


def _mean_score(folds: Sequence[Adapter]) -> torch.Tensor:
    return _mean([fold.score for fold in folds])


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([t.float() for t in tensors]).mean(0)


def _shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {
        adapter.head: (*adapter.score.shape,),
        **{module: (*a.shape, *b.shape) for module, (a, b) in adapter.factors.items()},
        **{f"{module}{MAGNITUDE}": (*t.shape,) for module, t in adapter.magnitudes.items()},
    }
