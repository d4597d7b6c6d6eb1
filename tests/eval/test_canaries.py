"""What an engine computes otherwise than was exported is noticed before it judges, and what it may is let through."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from core.errors import UserError
from core.prompts import Renderer
from core.records import ORDERS
from eval.canaries.checking import CANARIES, Differences, check_canaries
from eval.canaries.making import make_canaries
from students.export.gguf import write_gguf
from teachers.scorers import transformers as scoring
from teachers.scorers.config import ScorerConfig
from teachers.scorers.opening import open_scorer
from teachers.scorers.transformers import TransformersScorer
from tests.composing import configured, scorer
from tests.device import Device
from tests.grids import grid
from tests.students.export.overflows import STREAM, blown_up
from tests.tiny_exports import with_swapped_labels

pytestmark = pytest.mark.timeout(300)
CANARY = configured("+exp=smoke").canaries
CONVERSATIONS = simulate(SimulateConfig(80, seed=1))[0]
EXACT = scorer("transformers", batch_tokens=1024)  # padded, several prompts at a time
Plant = Callable[[pytest.MonkeyPatch], None]


def renderer_of(folder: Path) -> Renderer:
    return Renderer(configured("+exp=smoke").prompt, folder)


def with_canaries(source: Path, folder: Path) -> Path:
    """A copy of a judge, with canaries."""
    shutil.copytree(source, folder)
    make_canaries(folder, folder, renderer_of(folder), scorer("transformers"), "fp16", CANARY, CONVERSATIONS, seed=0)
    return folder


def check(folder: Path, config: ScorerConfig = EXACT, canaries: str = "refuse") -> str | None:
    renderer = renderer_of(folder)
    with open_scorer(folder, config, renderer.config.max_tokens) as opened:
        return check_canaries(folder, renderer, opened, canaries)  # type: ignore[arg-type]


@pytest.mark.long
def test_making_and_checking_leave_the_device_free(tiny_judge_llama: Path, tmp_path: Path, device: Device) -> None:
    check(with_canaries(tiny_judge_llama, tmp_path / "judge"))
    device.check_left_free(scorers=2)


@pytest.fixture(scope="module")
def exports(tiny_judge_llama: Path, tiny_w8a8: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    merged, w8a8 = with_canaries(tiny_judge_llama, root / "merged"), with_canaries(tiny_w8a8, root / "w8a8")
    write_gguf(tiny_judge_llama, root / "gguf-plain")
    return {"merged": merged, "w8a8": w8a8, "gguf": with_canaries(root / "gguf-plain", root / "gguf")}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, EXACT) for name in ("merged", "w8a8", "gguf")),
        *((name, scorer("transformers", batch_tokens=1)) for name in ("merged", "w8a8")),
        ("merged", scorer("transformers", dtype="fp16")),
        ("w8a8", scorer("transformers", dtype="fp16")),  # as on a T4
    ],
)
def test_engines_that_are_right_are_let_through(name: str, config: ScorerConfig, exports: dict[str, Path]) -> None:
    assert check(exports[name], config) is None


def test_canaries_are_of_both_orders_and_what_the_model_says(exports: dict[str, Path]) -> None:
    table = pl.read_parquet(exports["merged"] / CANARIES)
    assert len(table) == CANARY.rows == 64 and table["id"].is_unique().all()
    assert table["order"].value_counts().sort("order").rows() == [(order, 32) for order in ORDERS]
    assert table["ids"].list.len().n_unique() > 10
    assert set(table["id"]) <= {c.id for c in CONVERSATIONS}


def saturating(patch: pytest.MonkeyPatch) -> None:
    """int8 products as oneDNN has them on CPUs without VNNI: unsigned by signed, pairs added in 16 bits."""

    def round_inputs(linear: torch.nn.Linear) -> None:
        scales = linear.weight.detach().abs().amax(-1, keepdim=True) / 127
        weights = (linear.weight / scales).round().int()

        def forward(x: torch.Tensor) -> torch.Tensor:
            step = x.abs().amax(-1, keepdim=True) / 127
            bytes_ = ((x / step).round().int() + 128).reshape(-1, 1, x.shape[-1])
            sums = [
                (part[..., 0::2] * weights[:, 0::2] + part[..., 1::2] * weights[:, 1::2])
                .clamp(-(2**15), 2**15 - 1)
                .sum(-1)
                for part in bytes_.split(16)
            ]
            products = (torch.cat(sums) - 128 * weights.sum(-1)).reshape(*x.shape[:-1], -1)
            return products * step * scales.T

        linear.forward = forward  # type: ignore[method-assign]

    patch.setattr(scoring, "round_inputs", round_inputs)


def padded_on_the_left(patch: pytest.MonkeyPatch) -> None:
    @torch.inference_mode()
    def outputs(self: TransformersScorer, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts])
        hidden = self.model.base_model(input_ids=ids).last_hidden_state[:, -1]
        return np.asarray(self.model.score(hidden).numpy())

    patch.setattr(TransformersScorer, "_outputs", outputs)


def activated(patch: pytest.MonkeyPatch) -> None:
    outputs = TransformersScorer._outputs
    patch.setattr(
        TransformersScorer, "_outputs", lambda self, prompts: torch.tensor(outputs(self, prompts)).softmax(-1).numpy()
    )


@pytest.mark.parametrize(
    ("name", "plant"),
    [("w8a8", saturating), ("merged", padded_on_the_left), ("w8a8", padded_on_the_left), ("w8a8", activated)],
)
def test_an_engine_that_computes_something_else_is_refused(
    name: str, plant: Plant, exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(
        UserError, match=r"computes something else here .* 64 canaries differ by .* rms.*canaries.on_failure=warn"
    ):
        check(exports[name])


@pytest.mark.parametrize("name", grid(["merged", "w8a8"], short=["w8a8"]))
def test_another_order_of_labels_is_refused_or_told(
    name: str, exports: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_swapped_labels(exports[name], tmp_path / "swapped")
    with pytest.raises(UserError, match="computes something else"):
        check(folder)
    problem = check(folder, canaries="warn")
    assert problem and problem in caplog.text


@pytest.mark.long
def test_an_overflow_of_fp16_is_refused(tiny_judge_gemma2: Path, tmp_path: Path) -> None:
    folder = with_canaries(blown_up(tiny_judge_gemma2, tmp_path / "blown_up", STREAM), tmp_path / "export")
    assert check(folder) is None
    with pytest.raises(UserError, match=r"of 64 canaries have logits here that are not finite: fp16 overflows"):
        check(folder, replace(EXACT, dtype="fp16"))


def test_an_export_without_canaries_is_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exports["merged"], tmp_path / "older")
    (folder / CANARIES).unlink()
    with pytest.raises(UserError, match=r"has no canaries\.parquet.*export it again with overwrite=true"):
        check(folder)


def test_other_tokens_than_at_the_export_are_told_apart(exports: dict[str, Path]) -> None:
    folder = exports["merged"]
    other = Renderer(configured("+exp=smoke", "prompt.template.verdict=Better?").prompt, folder)
    with (
        open_scorer(folder, EXACT, 256) as opened,
        pytest.raises(UserError, match="64 of 64 canaries become other tokens"),
    ):
        check_canaries(folder, other, opened, "refuse")


def test_nothing_that_is_not_a_number_is_within() -> None:
    nothing = Differences(0.0, 0.0, 0.0)
    assert nothing.within(nothing)
    broken = Differences.between(np.array([[0.0, np.nan, 0.0]]), np.zeros((1, 3)))
    assert not broken.within(Differences(1e9, 1e9, 1e9))
