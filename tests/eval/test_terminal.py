"""What an evaluation prints: its judges in order, in a table that fits a terminal."""

import io
import json
import re
from pathlib import Path

from rich.console import Console

from eval.evaluation import METRICS
from eval.report.ladder import ordered
from eval.report.terminal import table
from tests.eval.evaluations import evaluate, typed


def test_table_follows_the_ladder_and_fits_a_terminal(tmp_path: Path) -> None:
    metrics = json.loads((evaluate(tmp_path).folder / METRICS).read_text())
    judges = metrics["judges"]
    output = io.StringIO()
    backwards = typed(tmp_path, metrics | {"judges": dict(reversed(judges.items()))})
    Console(file=output, width=80).print(table(backwards))
    assert "bootstrap of prompts" in output.getvalue()
    lines = [line for line in output.getvalue().splitlines() if re.search(r"\d\.\d{4}–\d\.\d{4} ", line)]
    assert [line.split()[0] for line in lines] == ordered(judges)  # nothing of an interval is cut off
    assert next(iter(judges)) == "prior" and ordered(judges)[-3:] == ["other.one", "teacher", "bayes"]
    assert {line.split()[0] for line in lines if "✗" in line} >= {"student_no_teacher"}
