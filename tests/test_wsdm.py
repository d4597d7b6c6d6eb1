"""WSDM Cup's own files, which have no ties, through every stage of `+exp=wsdm3` on a tiny model."""

import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from core.artefacts.manifest import read_manifest
from core.labels import WITHOUT_TIES, labels_in
from core.store.reading import read_logits
from tests.running import succeeds

pytestmark = [pytest.mark.timeout(580), pytest.mark.long]
TINY = """# @package _global_
defaults:
  - wsdm3
  - override /prompt: compact
  - override /tracker: none
  - override /scorer@scorers.teacher: transformers
  - override /scorer@scorers.exported: transformers
name: tiny
data: {{files: [{train}], test_share: 0.2, near_duplicates: null, folds: {{count: 2}}}}
prompt: {{max_tokens: 128}}
model: {{base: {base}, load_in_4bit: false, dtype: fp32, lora: {{rank: 4, alpha: 8, dropout: 0}}}}
train: {{validation_share: 0.2, validate_every: null, batch_conversations: 16}}
teacher: {{rows: in_fold, mixture: {{teachers: [tiny]}}, temperature_scaling: false}}
eval: {{bootstrap: 50}}
export: {{format: merged, calibration_rows: 8, scaling: vector}}
fidelity: {{log_loss: null, kl: null, verdicts: null, regret: null, flip_rate: null, ece: null}}
"""


def wsdm_files(folder: Path) -> tuple[Path, Path]:
    """train.parquet and test.parquet as the contest lays them out, with invented texts."""
    drawn = random.Random(3)
    languages = ("English", "German", "Vietnamese")
    rows = [
        {
            "id": f"{number:064x}",
            "prompt": f"Question {number}: how long is {drawn.choice(['a river', 'ein Fluss', 'con sông'])}?",
            "response_a": " ".join(["About that long."] * drawn.randint(1, 4)),
            "response_b": " ".join(["I do not know."] * drawn.randint(1, 4)),
            "winner": drawn.choice(["model_a", "model_b"]),
            "model_a": f"model-{number % 3}",
            "model_b": f"model-{(number + 1) % 3}",
            "language": languages[number % 3],
        }
        for number in range(130)
    ]
    train, test = folder / "train.parquet", folder / "test.parquet"
    pl.DataFrame(rows[:110]).write_parquet(train)
    asked = pl.DataFrame(rows[110:]).select("id", "prompt", "response_a", "response_b")
    asked.with_row_index("number").select(pl.col("number").cast(pl.Int64).alias("id"), *asked.columns[1:]).with_columns(
        scored=pl.lit(True)
    ).write_parquet(test)
    return train, test


def test_wsdms_own_files_go_through_every_stage(tmp_path: Path, tiny_qwen2: Path) -> None:
    train, test = wsdm_files(tmp_path)
    (tmp_path / "conf" / "exp").mkdir(parents=True)
    (tmp_path / "conf/exp/tiny_wsdm.yaml").write_text(TINY.format(train=train, base=tiny_qwen2))
    root, output = tmp_path / "artifacts", tmp_path / "submission.csv"
    common = [f"hydra.searchpath=[file://{tmp_path}/conf]", "+exp=tiny_wsdm", f"paths.root={root}"]

    # Two labels, told by prepare and noted
    told = succeeds("distill.prepare", *common)
    assert "no votes for a tie" in told and labels_in(root / "data/wsdm") == WITHOUT_TIES

    # A teacher on the votes, its logits, the mixture, a student, its export
    succeeds("distill.student", *common, "role=teacher")
    succeeds("distill.teacher", *common, "teacher.kind=folds", "teacher.folds=[0]", "teacher.name=tiny")
    succeeds("distill.teacher", *common)
    mixed = read_logits(root / "logits/wsdm3_teachers", "")["logits"].to_numpy()
    assert np.exp(mixed[:, :2]).sum(axis=1) == pytest.approx(1, abs=1e-5) and np.exp(mixed[:, 2]).max() < 1e-9
    succeeds("distill.student", *common)
    succeeds("distill.export", *common)
    assert labels_in(root / "students/tiny/fold=0") == labels_in(root / "exports/tiny/merged") == WITHOUT_TIES
    tie = json.loads((root / "exports/tiny/merged/calibration.json").read_text())
    assert (tie["scale"][2], tie["shift"]) == (1, [0, 0, 0])

    # The evaluation is that of two labels, with a slice for each language
    table = succeeds("eval", *common)
    assert "nobody could vote for a tie" in table
    metrics = json.loads((root / "eval/tiny/metrics.json").read_text())
    student = metrics["judges"]["student"]
    assert metrics["labels"] == [*student["reliability_by_label"]] == ["a", "b"]
    assert student["log_loss"] < 1 and abs(metrics["judges"]["prior"]["log_loss"] - np.log(2)) < 0.1
    assert "verbosity_at_ties" not in student["biases"]
    page = (root / "eval/tiny/report.html").read_text()
    assert "Two labels: nobody could vote for a tie" in page and "0.6931" in page and "for tie" not in page

    # The submission, row by row
    succeeds("distill.predict", *common, f"input={test}", f"output={output}")
    asked = pl.read_parquet(test)
    submission = pl.read_csv(output, schema_overrides={"id": pl.String})
    chances = pl.read_csv(tmp_path / "submission.probabilities.csv", schema_overrides={"id": pl.String})
    assert submission.columns == ["id", "winner"] and chances.columns == ["id", "winner_model_a", "winner_model_b"]
    assert submission["id"].to_list() == chances["id"].to_list() == asked["id"].cast(pl.String).to_list()
    for (_, winner), (_, a, b) in zip(submission.rows(), chances.rows(), strict=True):
        assert winner == ("model_a" if a >= b else "model_b") and a + b == pytest.approx(1, abs=1e-6)
    assert read_manifest(root / "exports/tiny/merged").extra["labels"] == ["a", "b"]
