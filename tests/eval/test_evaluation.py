"""What `metrics.json` says of several judges is what each module says of one."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.records import Conversation
from core.scoring import logits_by_order
from eval import surface_features
from eval.bootstrap import Resampling
from eval.leaderboard import ratings
from eval.means import paired_difference
from eval.metrics import log_loss_rows, predict
from tests.eval.evaluations import Evaluated, evaluate

RESAMPLING = Resampling(200, 0)  # of `evaluate`


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return evaluate(tmp_path_factory.mktemp("evaluation"))


def metrics(evaluation: Evaluated) -> dict[str, Any]:
    return dict(json.loads((evaluation.folder / "metrics.json").read_text()))


def said(evaluation: Evaluated) -> dict[str, np.ndarray]:
    """The probabilities of each judge that was asked, for the held-out conversations in their order."""
    frame = pl.read_parquet(evaluation.folder / "predictions.parquet")
    ids = [c.id for c in evaluation.held_out]
    return {name: predict(*logits_by_order(frame.filter(judge=name), ids)) for name in frame["judge"].unique()}


def votes(conversations: list[Conversation]) -> np.ndarray:
    return np.array([c.votes for c in conversations])


@pytest.mark.long
def test_every_judge_is_compared_with_the_student_on_the_same_rows(evaluation: Evaluated) -> None:
    found, held_out, judged = metrics(evaluation), evaluation.held_out, said(evaluation)
    losses = {judge: log_loss_rows(of, votes(held_out)) for judge, of in judged.items()}
    against = {judge: gains["log_loss"] for judge, gains in found["differences"]["student"].items()}
    assert against.keys() == found["judges"].keys() - {"student"}
    for judge in judged.keys() - {"student"}:
        groups = [c.group for c in held_out]
        expected = asdict(paired_difference(losses["student"], losses[judge], groups, RESAMPLING))
        assert against[judge].keys() == expected.keys()
        for figure, value in expected.items():
            assert against[judge][figure] == pytest.approx(value, abs=1e-6)
    gain = found["gain"]
    assert against["student_no_teacher"]["difference"] == pytest.approx(-gain["difference"], abs=1e-9)
    assert against["student_no_teacher"]["p"] == pytest.approx(gain["p"])


def test_a_judges_ratings_have_intervals_as_peoples_have(evaluation: Evaluated) -> None:
    models, judged = metrics(evaluation)["leaderboard"]["models"], said(evaluation)
    columns = ("model_a", "model_b", "group")
    games = pl.DataFrame({name: [getattr(c, name) for c in evaluation.held_out] for name in columns})
    for judge in ("student", "teacher"):
        for row in ratings(games, judged[judge], RESAMPLING).table().iter_rows(named=True):
            (of,) = (model["judges"][judge] for model in models if model["model"] == row["model"])
            assert of == pytest.approx({name: row[name] for name in ("rating", "low", "high")})
            assert of["low"] < of["rating"] < of["high"]


def test_features_of_responses_are_counted_once_for_all_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, count = [], surface_features._features

    def counting(responses: Sequence[Sequence[str]]) -> pl.DataFrame:
        counted.append(len(responses))
        return count(responses)

    monkeypatch.setattr(surface_features, "_features", counting)
    evaluation = evaluate(tmp_path, rows=60)
    assert counted == [60, 60] and len(metrics(evaluation)["judges"]) > 2
