"""A benchmark's results as table, lines, JSON and page, from judges whose answers are known."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from core.records import ORDERS
from core.scoring import SCORES
from eval.__main__ import asked_of, benchmark_teachers
from eval.benchmarks.page import write_benchmark_page
from eval.benchmarks.results import BenchmarkResult, benchmark_lines, benchmark_table, measure_benchmark
from eval.benchmarks.rows import read_benchmark
from eval.judges.answers import Answers
from eval.results import read_result, write_result
from tests.composing import configured
from tests.eval.benchmarks.test_rows import RM_BENCH, written
from tests.eval.test_report import SHOWN, Page, value_at

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
    rows = [{**row, "domain": row["domain"] if i else f"chat {EVIL}"} for i, row in enumerate(RM_BENCH)]
    benchmark = read_benchmark(written(tmp_path_factory.mktemp("file"), rows), configured().data)
    asked = [(c, order) for c in benchmark.conversations() for order in ORDERS]
    noise = np.random.default_rng(0).normal(size=(len(asked), 3))
    answers = {}
    for name, skill, taught in (("teacher", 9.0, None), ("student", 1.0, 7), ("student_w8a8", -9.0, 0)):
        table = {
            "id": [c.id for c, _ in asked],
            "order": [o for _, o in asked],
            "logits": noise + np.array([skill, 0, 0]),
        }
        scores = pl.DataFrame(table, schema={column: SCORES[column] for column in table})
        answers[name] = Answers(scores, taught, alike=2, failed=["kl differs"] if taught == 0 else [])
    return measure_benchmark(benchmark, answers, {"student_gguf": f"no engine {EVIL}"})


def test_right_judges_score_one_and_wrong_ones_nothing(result: BenchmarkResult) -> None:
    assert [*result.judges] == ["student", "student_w8a8", "teacher"]
    assert result.judges["teacher"].sections == {"chat": 1, "safety": 1, "easy": 1, "normal": 1, "hard": 1}
    assert result.judges["student_w8a8"].sections == dict.fromkeys(result.judges["teacher"].sections, 0)
    assert result.judges["teacher"].overall is None, "there is no row of code and math"


def test_table_and_lines_say_what_is_held_out_and_what_lacks(result: BenchmarkResult) -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(benchmark_table(result))
    rows = {words[0]: words for line in console.export_text().splitlines() if (words := line.split())}
    assert rows["teacher"][1:3] == ["–", "100.0%"] and rows["teacher"][-2:] == ["not", "known"]
    assert rows["student"][-1] == "no" and rows["student_w8a8"][-1] == "yes"
    told = "\n".join(map(str, benchmark_lines(result)))
    assert "student: cross-validated, its teachers saw 7 of 36 of these pairs." in told
    assert "teacher: nobody can tell what it learned from." in told and "lacks sections of RM-Bench" in told
    assert "✗ student_w8a8 failed its checks: kl differs" in told and "✗ student_gguf gave no answer" in told


def test_every_number_of_the_page_names_its_place(result: BenchmarkResult, tmp_path: Path) -> None:
    write_result(tmp_path / "metrics.json", result)
    assert asdict(read_result(BenchmarkResult, tmp_path / "metrics.json")) == asdict(result)
    write_benchmark_page(tmp_path / "report.html", "demo", result, {}, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert EVIL not in text and "script-src" not in text and "default-src 'none'" in text
    page, files = Page(text), {"metrics.json": json.loads((tmp_path / "metrics.json").read_text())}
    assert len(page.sourced) > 30
    for source, form, shown in page.sourced:
        value = value_at(files, source)
        assert shown == ("–" if value is None else SHOWN[form](value)), source


def test_a_teacher_that_is_asked_otherwise_is_another(tiny_llama: Path, tmp_path: Path) -> None:
    """So that its scores of before are not shown for it."""

    def asked(*changes: str) -> Any:
        model = ("teacher=model", "teacher.name=other", f"teacher.model={tiny_llama}", "teacher.method=label_tokens")
        config = configured("+exp=smoke", f"paths.root={tmp_path}", *model, *changes)
        (found,) = asked_of(benchmark_teachers(config), config.teacher)
        return found

    first = asked()
    assert asked() == first
    assert asked("prompt.template.verdict=Who?") != first != asked("prompt.label_tokens=[A,B,C]")
