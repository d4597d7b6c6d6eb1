"""The plots show what was measured, and nothing where it was not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from proof.figures import FIGURES, SIZES, save

TWO_STAGE = "model.base=artifacts/exports/proof_gpt4/merged"


def of(log_loss: float) -> dict[str, Any]:
    return {"log_loss": log_loss, "log_loss_ci": [log_loss - 0.02, log_loss + 0.02]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fixed = {name: of(0.5 + i / 100) for i, name in enumerate(("prior", "surface", "bradley_terry", "teacher"))}
    for i, run in enumerate((*SIZES, "proof_human")):
        judges = {**fixed, "student": of(0.6 - i / 50), "loss=votes": of(0.62 - i / 50), TWO_STAGE: of(0.4)}
        written = {f"eval/{run}/{name}": {"judges": judges} for name in ("metrics.json", "seeds.json")}
        written[f"students/{run}/fold=0/manifest.json"] = {"rows": {"training": 1000 * 4**i}}
        for name, content in written.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(json.dumps(content))
    metrics = tmp_path / "eval/proof_gpt4/metrics.json"
    exported = {"student_merged": of(0.55), "student_w8a8": of(0.56)}
    metrics.write_text(json.dumps({"judges": {**json.loads(metrics.read_text())["judges"], **exported}}))
    slopes = {judge: {"slope": 0.5, "ci": [0.4, 0.7]} for judge in ("people", "student", "student_merged")}
    rates = {"merged loop": 10.0, "merged transformers": 20.0, "w8a8 vllm": 30.0}
    said = {
        "mixture": {"mixture": of(0.97)},
        "formats": {"per_second": rates},
        "length_gpt4": slopes,
        "length_human": slopes,
    }
    (tmp_path / "proof").mkdir()
    for name, content in said.items():
        (tmp_path / f"proof/{name}.txt").write_text(f"what it says\n{json.dumps(content)}\n")
    return tmp_path


def test_each_plot_holds_its_figures(root: Path) -> None:
    drawn = {name: draw(root).to_dict() for name, draw in FIGURES.items()}
    soft, hard = drawn["proof_soft_hard"]["data"]
    assert list(soft["x"]) == [1000, 4000, 16000] and list(soft["y"]) == pytest.approx([0.6, 0.58, 0.56])
    assert list(hard["y"]) == pytest.approx([0.62, 0.6, 0.58]) and list(hard["error_y"]["array"]) == pytest.approx(
        [0.02] * 3
    )
    (votes,) = drawn["proof_votes"]["data"]
    assert len(votes["x"]) == 5 and votes["x"][0] == 0.97, "GPT-4's student as it is was not judged here"
    measured = drawn["proof_law"]["data"][-1]
    assert list(measured["x"]) == [1000, 4000, 16000]
    assert {tuple(trace["x"]) for trace in drawn["proof_exports"]["data"]} == {(10.0,), (20.0,), (30.0,)}
    assert [len(trace["x"]) for trace in drawn["proof_lengths"]["data"]] == [2, 2]


def test_plots_are_drawn(root: Path, tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    save({"proof_votes": FIGURES["proof_votes"](root)}, tmp_path)
    drawn = (tmp_path / "proof_votes.svg").read_text()
    assert drawn.startswith("<svg") and "trained on the votes" in drawn
