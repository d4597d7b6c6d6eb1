"""Comparing an export with its student: which model answered what."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.artefacts.building import Artefact
from core.models.resolving import resolve
from core.prompts import Renderer
from eval.export_comparison import unquantised
from students.trained import TrainedJudge
from tests.composing import configured, scorer


def test_answers_of_a_merge_in_fp32_are_kept_apart_from_those_in_the_base_s_type(
    tiny_judge_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured("+exp=smoke")
    base = resolve(str(tiny_judge_llama), tmp_path)
    (tmp_path / "run").mkdir()
    manifest = Artefact(tmp_path / "run", "student", {}, [], tmp_path).finish()
    judge = TrainedJudge(tmp_path / "run", manifest, base, Renderer(config.prompt, base))

    def merged(judge: TrainedJudge, root: Path, dtype: torch.dtype | None = None) -> Path:
        return root / ("merged" if dtype is None else "merged-float32")

    monkeypatch.setattr(TrainedJudge, "merged", merged)
    reference = unquantised(judge, replace(scorer("transformers"), dtype="fp32"), tmp_path)
    assert reference.folder.name == "merged-float32"
    assert reference.content != judge.manifest.content, "eval keeps answers of `merged` under this one"
