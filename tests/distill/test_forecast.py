"""What more conversations would buy: only runs count that can be compared, and each student counts once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.json_files import write_json
from distill.plan.forecast import forecast_stage
from distill.plan.stage import Stage
from distill.training_run import run_identity
from eval.results import SEEDS
from tests.composing import configured


@dataclass(frozen=True)
class Evaluated:
    """Makes evaluated students below a root, as far as the forecast reads them."""

    root: Path

    def data(self, text: str = "prepared") -> Path:
        return self.finish("data/smoke", "prepare", text)

    def finish(self, place: str, stage: str, text: str) -> Path:
        folder = self.root / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_text(text)
        Artefact(folder, stage, {}, [], self.root).finish()
        return folder

    def student(self, name: str, rows: int, *overrides: str, text: str = "weights") -> Path:
        config = replace(configured("+exp=smoke", f"paths.root={self.root}", *overrides), run=name)
        folder = self.finish(f"students/{name}/fold=0", "student", text)
        Artefact(folder, "student", run_identity(config), [], self.root).finish(rows={"training": rows})
        return folder

    def evaluation(
        self, name: str, log_loss: float, parents: list[Path], seeds: Mapping[str, float] | None = None, **asked: object
    ) -> None:
        """Of the student of that name; `seeds`: the mean over some and their number."""
        folder = self.root / "eval" / name
        folder.mkdir(parents=True)
        write_json(folder / "metrics.json", {"split": "test", "judges": figures(log_loss)})
        if seeds:
            write_json(folder / SEEDS, {"seeds": [*range(int(seeds["count"]))], "judges": figures(seeds["mean"])})
        identity = {"eval": {"split": "test", "truth": "votes", "limit": None, **asked}}
        Artefact(folder, "eval", identity, parents, self.root).finish()


def figures(log_loss: float) -> dict[str, object]:
    return {"student": {"log_loss": log_loss, "log_loss_ci": [log_loss - 0.01, log_loss + 0.01]}}


def measured(stage: Stage | None) -> list[tuple[str, str]]:
    """The lines of runs that were found: conversations and log loss."""
    assert stage is not None
    return [(name.split()[0], told.split()[2].strip(",")) for name, told in stage.lines if "measured" in told]


def test_finished_runs_on_fewer_conversations_tell_what_more_would_buy(tmp_path: Path) -> None:
    """Three sizes of the experiment itself; runs that were trained otherwise, or changed since, do not count."""
    made, config = Evaluated(tmp_path), configured("+exp=smoke", f"paths.root={tmp_path}")
    data = made.data()

    def evaluated(name: str, rows: int, log_loss: float, *overrides: str) -> None:
        made.evaluation(name, log_loss, [data, made.student(name, rows, *overrides)])

    evaluated("small", 500, 0.9, "limit=500")
    evaluated("middle", 2000, 0.8, "limit=2000", "seed=3")
    assert forecast_stage(config) is None, "two sizes"
    evaluated("otherwise", 8000, 0.1, "train.epochs=7")
    evaluated("changed", 8000, 0.1)
    made.student("changed", 8000, text="other weights")
    assert forecast_stage(config) is None
    evaluated("whole", 8000, 0.75)
    stage = forecast_stage(config)
    assert stage is not None
    names, told = zip(*stage.lines, strict=True)
    assert names == ("500 conversations", "2,000 conversations", "8,000 conversations", "16,000", "32,000")
    assert 0.65 < float(told[3].split(",")[0]) < 0.75
    evaluated("larger", 32000, 0.3, "limit=32000")
    stage = forecast_stage(config)
    assert stage is not None and stage.lines[-1][0] == "the law" and "does not fit: " in stage.lines[-1][1]


def test_of_the_judges_of_an_evaluation_the_student_is_taken(tmp_path: Path) -> None:
    """Not its variant on votes, which comes before it among the parents and saw fewer conversations here."""
    made, config = Evaluated(tmp_path), configured("+exp=smoke", f"paths.root={tmp_path}")
    data = made.data()
    for name, rows, log_loss in (("c", 500, 0.9), ("b", 2000, 0.8), ("a", 8000, 0.75)):
        variant = made.student(f"{name},loss=votes", rows // 2, f"limit={rows}", "loss=votes")
        made.evaluation(name, log_loss, [data, variant, made.student(name, rows, f"limit={rows}")])
    assert measured(forecast_stage(config)) == [("500", "0.9000"), ("2,000", "0.8000"), ("8,000", "0.7500")]


def test_only_evaluations_on_the_same_rows_and_by_the_same_truth_are_compared(tmp_path: Path) -> None:
    made, config = Evaluated(tmp_path), configured("+exp=smoke", f"paths.root={tmp_path}")
    by_teacher = replace(config, eval=replace(config.eval, truth="teacher"))
    data = made.data("as they were")
    made.evaluation("before", 0.2, [data, made.student("before", 16000)])
    data, logits = made.data(), made.finish("logits/other", "teacher", "of another teacher")
    made.evaluation("other", 0.2, [data, logits, made.student("other", 16000)], truth="teacher")
    logits = made.finish(f"logits/{config.teacher.name}", "teacher", "logits")
    for name, rows, log_loss in (("small", 500, 0.9), ("middle", 2000, 0.8), ("whole", 8000, 0.75)):
        parents = [data, logits, made.student(name, rows, f"limit={rows}")]
        made.evaluation(name, log_loss, parents)
        more = [data, logits, made.student(f"{name}2", rows, f"limit={rows}")]
        made.evaluation(f"{name}2", log_loss - 0.5, more, truth="teacher")
    made.evaluation("part", 0.2, [data, logits, made.student("part", 16000)], limit=100)
    made.evaluation("fold", 0.2, [data, logits, made.student("fold", 16000)], split="fold")
    assert measured(forecast_stage(config)) == [("500", "0.9000"), ("2,000", "0.8000"), ("8,000", "0.7500")]
    assert measured(forecast_stage(by_teacher)) == [("500", "0.4000"), ("2,000", "0.3000"), ("8,000", "0.2500")]
    (logits / MANIFEST).unlink()
    assert forecast_stage(by_teacher) is None


def test_the_mean_over_seeds_stands_for_each_of_its_runs(tmp_path: Path) -> None:
    made, config = Evaluated(tmp_path), configured("+exp=smoke", f"paths.root={tmp_path}")
    data = made.data()
    for name, rows, log_loss in (("small", 500, 0.9), ("middle", 2000, 0.8), ("whole", 8000, 0.75)):
        of_seed = [made.student(f"{name},seed={seed}", rows, f"limit={rows}", f"seed={seed}") for seed in (1, 2)]
        made.evaluation(f"{name},seed=1", log_loss + 0.02, [data, of_seed[0]])
        mean = {"count": 3, "mean": log_loss + 0.01} if name != "middle" else None
        made.evaluation(name, log_loss, [data, made.student(name, rows, f"limit={rows}"), *of_seed], seeds=mean)
    found = measured(forecast_stage(config))
    assert found == [("500", "0.9100"), ("2,000", "0.8000"), ("2,000", "0.8200"), ("8,000", "0.7600")]
