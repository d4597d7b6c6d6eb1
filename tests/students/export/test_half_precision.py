import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from core.models.folders import new_model
from core.scoring import score
from students.export import half_precision
from students.export.half_precision import (
    ENDS_OF_BRANCHES,
    FAMILIES,
    LARGEST,
    activation_ranges,
    fit_into_fp16,
    rescale,
    smallest_factors,
    watched,
    weight_ranges,
)
from teachers.scorers.transformers import TransformersScorer
from tests.composing import scorer
from tests.grids import grid
from tests.students.export.overflows import STREAM, blown_up, prompts
from tests.tiny_models import tiny_judge

PROMPTS = prompts()
OVERFLOWS = {
    "stream": STREAM,
    "mlp": {"layers.1.mlp.up_proj": 3e4},
    "attention": {"layers.0.self_attn.v_proj": 1e5},
    "all": {**STREAM, "mlp.up_proj": 1e4, "layers.1.self_attn.v_proj": 1e5},
}


@pytest.fixture(scope="module", params=grid(FAMILIES, short=["gemma2"]))
def gemma(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("gemma"), request.param)


def logits(folder: Path, dtype: str = "fp32") -> np.ndarray:
    return score(TransformersScorer(folder, scorer("transformers", dtype=dtype)), PROMPTS)


class TestRanges:
    def test_they_are_what_a_computation_by_hand_says(self, tiny_judge_llama: Path) -> None:
        weights = load_file(tiny_judge_llama / "model.safetensors")
        tokens = torch.tensor([token for prompt in PROMPTS for token in prompt])
        embedded = weights["model.embed_tokens.weight"][tokens]
        normed = embedded * (embedded.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        normed = normed * weights["model.layers.0.input_layernorm.weight"]
        found = activation_ranges(tiny_judge_llama, PROMPTS)
        for place, values in {
            "model.embed_tokens.output": embedded,
            "model.layers.0.input_layernorm.input": embedded,
            "model.layers.0.self_attn.v_proj.input": normed,
            "model.layers.0.self_attn.v_proj.output": normed @ weights["model.layers.0.self_attn.v_proj.weight"].T,
        }.items():
            assert found[place] == pytest.approx(values.abs().max().item(), rel=1e-5), place

    def test_over_many_prompts_they_are_the_largest_over_each(self, tiny_judge_llama: Path) -> None:
        alone = [activation_ranges(tiny_judge_llama, [prompt]) for prompt in PROMPTS]
        together = activation_ranges(tiny_judge_llama, PROMPTS)
        assert together == {place: max(ranges[place] for ranges in alone) for place in together}

    def test_they_name_what_was_blown_up(self, tiny_judge_llama: Path, tmp_path: Path) -> None:
        large = blown_up(tiny_judge_llama, tmp_path / "large", {"layers.1.mlp.up_proj": 1024})
        before, after = activation_ranges(tiny_judge_llama, PROMPTS), activation_ranges(large, PROMPTS)
        grown = {place: after[place] / before[place] for place in before if after[place] != before[place]}
        assert grown.pop("model.layers.1.mlp.up_proj.output") == 1024
        assert grown.pop("model.layers.1.mlp.down_proj.input") == 1024
        assert [*grown] == ["model.layers.1.mlp.down_proj.output", "model.norm.input", "model.norm.output"]
        heavy = max(ranges := weight_ranges(large), key=ranges.__getitem__)
        assert heavy == "model.layers.1.mlp.up_proj.weight"
        assert ranges[heavy] == 1024 * weight_ranges(tiny_judge_llama)[heavy]

    def test_attention_is_capped_as_the_judge_is_served(self, tiny_judge_gemma2: Path) -> None:
        def largest(attention: str) -> dict[str, float]:
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                tiny_judge_gemma2, attn_implementation=attention
            ).eval()
            with torch.inference_mode(), watched(model) as found:
                model.base_model(input_ids=torch.tensor(PROMPTS[-1:]), use_cache=False)
            return {place: value.item() for place, value in found.items()}

        place = "model.layers.0.self_attn.o_proj.output"
        found = activation_ranges(tiny_judge_gemma2, PROMPTS[-1:])
        assert found == largest("eager")
        assert abs(found[place] / largest("sdpa")[place] - 1) > 0.01

    def test_the_gpu_that_one_has_used_is_free_for_the_next(
        self, tiny_judge_llama: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One of these fits into its memory, of which what PyTorch's allocator holds is no free part."""
        size, taken, chosen, models = 10**9, [0], [], []
        load, choose = AutoModelForSequenceClassification.from_pretrained, half_precision._device

        def load_and_note(*arguments: Any, **named: Any) -> nn.Module:
            model: nn.Module = load(*arguments, **named)
            models.append(weakref.ref(model))
            return model

        def choose_and_take(_: int) -> torch.device:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.cuda, "is_available", lambda: True)
                patch.setattr(torch.cuda, "mem_get_info", lambda: (2 * size - taken[0], 2 * size))
                chosen.append(choose(size).type)
            taken[0] += size
            return torch.device("cpu")

        def give_back() -> None:
            taken[0] = size * sum(model() is not None for model in models)

        monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", load_and_note)
        monkeypatch.setattr(half_precision, "_device", choose_and_take)
        monkeypatch.setattr(torch.cuda, "empty_cache", give_back)
        for _ in range(2):
            activation_ranges(tiny_judge_llama, PROMPTS[:1])
        assert chosen == ["cuda", "cuda"]

    def test_nan_is_not_overlooked_and_hooks_go(self) -> None:
        layer = nn.Linear(1, 1)
        with watched(nn.Sequential(layer)) as largest:
            for value in (1.0, torch.nan, 2.0):
                layer(torch.tensor([value]))
        assert largest["0.input"].isnan() and not layer._forward_hooks


class TestRescaling:
    @pytest.mark.parametrize("overflow", grid(OVERFLOWS, short=["all"]))
    def test_an_overflow_in_gemma_is_cured_exactly(self, gemma: Path, overflow: str, tmp_path: Path) -> None:
        large = blown_up(gemma, tmp_path / "large", OVERFLOWS[overflow])
        assert not np.isfinite(logits(large, "fp16")).all()
        found = fit_into_fp16(large, tmp_path / "out", PROMPTS, 1.5)
        assert found.rescaled and found.margin >= 1.5 and found.largest * found.margin == pytest.approx(LARGEST)
        expected = logits(large)
        assert np.abs(logits(tmp_path / "out") - expected).max() < 1e-5
        # Logits have a standard deviation of 1.8, and fp16 alone, without any overflow, moves them by up to 0.007.
        assert np.abs(logits(tmp_path / "out", "fp16") - expected).max() < 0.015

    @pytest.mark.parametrize("overflow", grid(OVERFLOWS, short=["all"]))
    def test_factors_are_the_smallest_and_where_they_are_needed(
        self, gemma: Path, overflow: str, tmp_path: Path
    ) -> None:
        large = blown_up(gemma, tmp_path / "large", OVERFLOWS[overflow])
        factors = smallest_factors(activation_ranges(large, PROMPTS), 1.5)
        assert {what for what in factors if what != "residual stream"} == {
            f"model.layers.{layer}.{name.removeprefix(f'layers.{layer}.')}"
            for name in OVERFLOWS[overflow].keys() - STREAM.keys()
            for layer in range(2)
            if name.startswith((f"layers.{layer}", "mlp"))
        }
        assert ("residual stream" in factors) == ("embed_tokens" in OVERFLOWS[overflow])
        for what in factors:
            less = factors | {what: factors[what] // 2}
            with new_model(tmp_path / what, large) as partial:
                rescale(large, partial, less)
            assert max(activation_ranges(tmp_path / what, PROMPTS).values()) * 1.5 * 1.001 > LARGEST

    def test_a_judge_that_fits_is_left_alone(self, gemma: Path, tmp_path: Path) -> None:
        found = fit_into_fp16(gemma, tmp_path / "out", PROMPTS, 1.5)
        assert not found.rescaled and found.margin > 1000 and not (tmp_path / "out").exists()
        assert json.loads(json.dumps(vars(found))) == vars(found)

    def test_norms_feel_their_epsilon_as_many_times_as_the_square_of_the_factor(
        self, tiny_judge_gemma2: Path, tmp_path: Path
    ) -> None:
        model = blown_up(tiny_judge_gemma2, tmp_path / "model", {}, rms_norm_eps=1e-4)
        stream, mlp = 16, 8
        with new_model(tmp_path / "out", model) as partial:
            rescale(model, partial, {"residual stream": stream, "model.layers.1.mlp.up_proj": mlp})
        reference = TransformersScorer(model, scorer("transformers", dtype="fp32"))
        plain, found = score(reference, PROMPTS), logits(tmp_path / "out")
        for name, module in reference.model.named_modules():
            if name == "model.layers.1.post_feedforward_layernorm":
                module.eps *= mlp**2
            elif name.endswith(("input_layernorm", "pre_feedforward_layernorm", "model.norm")):
                module.eps *= stream**2
        assert np.abs(found - plain).max() > 1e-3
        assert np.abs(found - score(reference, PROMPTS)).max() < 1e-5

    def test_gains_are_stored_in_fp32_and_what_a_cast_would_lose(self, tiny_judge_gemma2: Path, tmp_path: Path) -> None:
        model = blown_up(tiny_judge_gemma2, tmp_path / "model", {})
        tensors = {name: tensor.half() for name, tensor in load_file(model / "model.safetensors").items()}
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        factor = 16
        with new_model(tmp_path / "out", model) as partial:
            rescale(model, partial, {"residual stream": factor})
        found = load_file(tmp_path / "out" / "model.safetensors")
        gains = {name for name in found if name.removesuffix(".weight").endswith(ENDS_OF_BRANCHES)}
        assert {name for name, tensor in found.items() if tensor.dtype == torch.float32} == gains and len(gains) == 4
        for name in gains:
            kept, cast = (factor * (1 + w.double()) for w in (found[name], found[name].half()))
            assert (kept / (1 + tensors[name].double()) - 1).abs().max() < factor * 2**-24
            assert factor * 2**-14 < (cast / kept - 1).abs().max() < 1.5 * factor * 2**-12  # a gain of 0.7 loses more
        untouched = found.keys() - gains - {"model.embed_tokens.weight"}
        assert all(torch.equal(found[name], tensors[name]) for name in untouched)


class TestRefusals:
    @pytest.mark.parametrize(
        ("family", "gains", "margin", "message"),
        [
            (
                "llama",
                {"layers.1.mlp.up_proj": 1e4},
                1,
                r"reach 8\.\d+e\+04 at model.layers.1.mlp.down_proj.input.*bf16$",
            ),
            ("llama", {}, 1e5, r"at model\..* fewer than export.margin=100000\. .* lower export.margin$"),
            ("gemma2", {"layers.0.mlp.gate_proj": 1e6}, 1, r"at model.layers.0.mlp.gate_proj.output"),
            ("llama", {"embed_tokens": float("inf")}, 1, "reach nan"),
        ],
    )
    def test_what_cannot_be_cured_is_named(
        self, family: str, gains: dict[str, float], margin: float, message: str, tmp_path: Path
    ) -> None:
        model = tiny_judge(tmp_path / "tiny", "gemma2" if family == "gemma2" else "llama")
        large = blown_up(model, tmp_path / "large", gains)
        with pytest.raises(ValueError, match=message):
            fit_into_fp16(large, tmp_path / "out", PROMPTS, margin)
        assert {path.name for path in tmp_path.iterdir()} == {"tiny", "large"}

    def test_a_weight_that_no_prompt_meets_is_named(self, tiny_judge_llama: Path, tmp_path: Path) -> None:
        large = blown_up(tiny_judge_llama, tmp_path / "large", {})
        tensors = load_file(large / "model.safetensors")
        tensors["model.embed_tokens.weight"][600, 3] = -7e4
        save_file(tensors, large / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"weights\| of model.embed_tokens.weight reach 7e\+04"):
            fit_into_fp16(large, tmp_path / "out", PROMPTS, 1)

    def test_no_prompts(self, tiny_judge_llama: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"raise export\.calibration_rows"):
            fit_into_fp16(tiny_judge_llama, tmp_path / "out", [], 2)
