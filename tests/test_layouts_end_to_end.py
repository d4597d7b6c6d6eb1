"""A file of each layout goes through preparing, teacher, student, export, evaluation and prediction."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from core.artefacts.manifest import read_manifest
from distill import export, predict, prepare, student, teacher
from eval import __main__ as evaluation
from tests.composing import configured
from tests.layout_files import FILES, write

pytestmark = [pytest.mark.timeout(580), pytest.mark.long]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_each_layout_goes_all_the_way(
    name: str, tmp_path: Path, tiny_llama: Path, tiny_judge_llama: Path
) -> None:
    file, output, root = write(name, tmp_path), tmp_path / "submission.csv", tmp_path / "artifacts"
    config = configured(
        *("+exp=smoke", f"name={name}", f"paths.root={root}", f"model.base={tiny_llama}", "model.layers=null"),
        *(f"data.name={name}", f"data.files=['{file}']", "data.simulate=null", "export.format=merged"),
        *("teacher=model", f"teacher.name={name}", f"teacher.model={tiny_judge_llama}", "teacher.method=classify"),
        *("scorer@scorers.teacher=transformers", "scorer@scorers.exported=transformers"),
        *("canaries.rows=8", "canaries.repeats=2", "eval.bootstrap=40"),  # seconds, which a layout does not change
    )
    config = replace(config, run=name)
    for stage in (prepare, teacher, student, export, evaluation):
        stage.main(config)
    predict.main(replace(config, input=str(file), output=str(output)))
    table = pl.read_csv(output, infer_schema=False)
    if "rank" in table.columns:  # single responses
        assert table.select("prompt", "response").is_unique().all()
        assert table.group_by("prompt").agg((pl.col("rank") == "1").any())["rank"].all()
    else:
        assert len(table) == read_manifest(root / "data" / name).rows["kept"]
    assert (root / "eval" / name / "report.html").is_file()
