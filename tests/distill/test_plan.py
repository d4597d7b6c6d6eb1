"""The plan's arithmetic: by hand, and against a real model's own count of its parameters."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from distill.plan import rows_per_second, teacher_shape
from tests.composing import configured
from tests.running import refuses, succeeds


def test_rows_per_second_by_hand() -> None:
    plan = replace(configured().plan, gpus=2, peak_tflops=100.0, utilisation=0.5, tokens=1000, cached=0.0)
    # 2 x 1e9 x 1000 = 2e12, and 2 x 10 x 1000 x 1000 x 1000 = 2e10 for attention; 2 x 100e12 x 0.5 = 1e14 a second
    assert rows_per_second(plan, parameters=1e9, layers=10, width=1000) == pytest.approx(1e14 / 2.02e12)
    half = rows_per_second(replace(plan, cached=0.5), parameters=1e9, layers=10, width=1000)
    assert half == pytest.approx(2 * 1e14 / 2.02e12)


def test_parameters_are_counted_without_weights(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    shape = teacher_shape(configured(f"student.base={tmp_path}"))
    assert shape["parameters"] == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_llama).parameters())
    assert shape["layers"] == 2 and shape["width"] == 64


def test_the_door_prints_time_and_cost(tiny_llama: Path) -> None:
    common = ["teacher.name=any", f"student.base={tiny_llama}", "plan=h100"]
    table = succeeds("distill.plan", *common, "plan.conversations=1000", "plan.price_per_gpu_hour=2")
    assert "2,000 (1,000 conversations, both orders)" in table and "8 x H100-80G" in table and "cost" in table
    assert "or give plan.conversations=" in refuses("distill.plan", *common, "data.name=nothing")
