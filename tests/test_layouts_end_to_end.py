"""A file of each layout goes through preparing, teacher, student, export, evaluation and prediction."""

from pathlib import Path

import polars as pl
import pytest

from core.artefacts.manifest import read_manifest
from tests.layout_files import FILES, write
from tests.running import succeeds

pytestmark = [pytest.mark.timeout(580), pytest.mark.long]
EXPERIMENT = """# @package _global_
defaults: [smoke, override /teacher: model]
name: {name}
data: {{name: {name}, files: ['{file}'], simulate: null}}
model: {{base: {base}, layers: null}}
teacher: {{name: {name}, model: {judge}, method: classify}}
"""


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_each_layout_goes_all_the_way(
    name: str, tmp_path: Path, tiny_llama: Path, tiny_judge_llama: Path
) -> None:
    file, judge = write(name, tmp_path), tiny_judge_llama
    (tmp_path / "conf" / "exp").mkdir(parents=True)
    experiment = EXPERIMENT.format(name=name, file=file, base=tiny_llama, judge=judge)
    (tmp_path / "conf" / "exp" / "layout.yaml").write_text(experiment)
    root = tmp_path / "artifacts"
    common = [f"hydra.searchpath=[file://{tmp_path}/conf]", "+exp=layout", f"paths.root={root}"]
    common += ["scorer@scorers.teacher=transformers", "scorer@scorers.exported=transformers", "export.format=merged"]
    for command in ("distill.prepare", "distill.teacher", "distill.student", "distill.export", "eval"):
        succeeds(command, *common)
    output = tmp_path / "submission.csv"
    succeeds("distill.predict", *common, f"input={file}", f"output={output}")
    table = pl.read_csv(output, infer_schema=False)
    if "rank" in table.columns:  # single responses
        assert table.select("prompt", "response").is_unique().all()
        assert table.group_by("prompt").agg((pl.col("rank") == "1").any())["rank"].all()
    else:
        assert len(table) == read_manifest(root / "data" / name).rows["kept"]
    assert (root / "eval" / name / "report.html").is_file()
