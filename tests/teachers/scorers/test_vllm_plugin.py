import json
import logging
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch

from core.scoring import score
from students.export.half_precision import fit_into_fp16
from teachers.plugin import judge_vllm_plugin as source
from teachers.scorers.opening import open_scorer
from teachers.scorers.transformers import TransformersScorer
from tests.composing import scorer
from tests.engines import spawned
from tests.students.export.overflows import STREAM, blown_up, prompts

PROMPTS = prompts()
VLLM = scorer("vllm", dtype="fp16")
REFUSAL = "The model type 'gemma2' does not support float16"


def with_record(folder: Path, extra: object) -> Path:
    (folder / "manifest.json").write_text(json.dumps({"stage": "export", "extra": extra}))
    return folder


def reference(folder: Path, dtype: str = "fp32") -> np.ndarray:
    return score(TransformersScorer(folder, scorer("transformers", dtype=dtype)), PROMPTS)


def in_vllm(folder: Path) -> np.ndarray:
    with open_scorer(folder, VLLM, 256) as engine:
        return score(engine, PROMPTS)


def dtype_of(folder: Path, dtype: str) -> torch.dtype:
    """The type in which vLLM would compute."""
    from vllm import EngineArgs

    return (
        EngineArgs(model=str(folder), runner="pooling", dtype=dtype, skip_tokenizer_init=True)
        .create_model_config()
        .dtype
    )


def test_the_installed_plugin_is_this_one_and_vllm_finds_it() -> None:
    (found,) = (point for point in entry_points(group="vllm.general_plugins") if point.name == "judge_fp16")
    installed = found.load()
    assert Path(installed.__code__.co_filename).read_text() == Path(source.__file__).read_text(), "run make setup"
    assert Path(installed.__code__.co_filename) != Path(source.__file__)


@pytest.mark.timeout(300)
class TestDtype:
    def test_fp16_is_allowed_where_the_manifest_says_that_it_fits(
        self, tiny_judge_gemma2: Path, tmp_path: Path
    ) -> None:
        judge = blown_up(tiny_judge_gemma2, tmp_path / "judge", {})
        for extra in ({}, {"fp16_margin": 0.99}, {"fp16_margin": None}, {"fp16_margin": "2"}, ["fp16_margin"]):
            with pytest.raises(ValueError, match=REFUSAL):
                dtype_of(with_record(judge, extra), "float16")
        assert dtype_of(with_record(judge, {"fp16_margin": 1.0}), "float16") == torch.float16
        with pytest.raises(ValueError, match=REFUSAL):  # the ban is back for all others
            dtype_of(tiny_judge_gemma2, "float16")
        (judge / "manifest.json").write_text("{")
        with pytest.raises(ValueError, match=REFUSAL):
            dtype_of(judge, "float16")

    def test_auto_is_fp16_on_a_device_without_bf16(
        self, tiny_judge_gemma2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from vllm.platforms import current_platform

        turing = [torch.float16, torch.float32]  # CudaPlatform's of a T4
        monkeypatch.setattr(type(current_platform), "supported_dtypes", turing)
        for stored in ("float16", "bfloat16", "float32"):
            judge = blown_up(tiny_judge_gemma2, tmp_path / stored, {}, dtype=stored)
            assert dtype_of(judge, "auto") == torch.float32
            assert dtype_of(with_record(judge, {"fp16_margin": 2}), "auto") == torch.float16

    def test_loading_it_again_changes_nothing(self) -> None:
        from vllm.config import model as model_config

        source.allow_measured_fp16()
        once = model_config._get_and_verify_dtype
        source.allow_measured_fp16()
        assert model_config._get_and_verify_dtype is once

    @pytest.mark.parametrize("name", ["_get_and_verify_dtype", "_FLOAT16_NOT_SUPPORTED_MODELS"])
    def test_another_vllm_is_left_alone_with_a_warning(
        self, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from vllm.config import model as model_config

        monkeypatch.delattr(model_config, name)
        before = dict(vars(model_config))
        with caplog.at_level(logging.WARNING):
            source.allow_measured_fp16()
        assert "Gemma judges need bf16 or fp32 here" in caplog.text and vars(model_config) == before


@pytest.mark.long
@pytest.mark.timeout(900)
class TestEngine:
    def test_a_measured_judge_scores_in_fp16_as_transformers_does_in_fp32(
        self, tiny_judge_gemma2: Path, tmp_path: Path
    ) -> None:
        judge = blown_up(tiny_judge_gemma2, tmp_path / "judge", {})
        with pytest.raises(ValueError, match=REFUSAL):
            in_vllm(judge)
        found = fit_into_fp16(judge, tmp_path / "out", PROMPTS, 2)
        with spawned():  # the plugin reaches each process by itself
            scores = in_vllm(with_record(judge, {"fp16_margin": found.margin}))
        assert np.abs(scores - reference(judge)).max() < 0.015

    def test_an_overflow_is_cured_by_rescaling_and_not_by_a_forged_record(
        self, tiny_judge_gemma2: Path, tmp_path: Path
    ) -> None:
        large = blown_up(tiny_judge_gemma2, tmp_path / "large", {**STREAM, "mlp.up_proj": 1e4, "v_proj": 1e5})
        found = fit_into_fp16(large, tmp_path / "out", PROMPTS, 2)
        assert not np.isfinite(in_vllm(with_record(large, {"fp16_margin": found.margin}))).all()
        cured = in_vllm(with_record(tmp_path / "out", {"fp16_margin": found.margin}))
        assert np.abs(cured - reference(large)).max() < 0.015
