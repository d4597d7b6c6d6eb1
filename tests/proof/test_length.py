"""What length is worth: recovered where it was put, and nothing where it was not."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import expit

from core.artefacts.building import Artefact
from core.data.table import save_conversations, to_frame
from core.records import Conversation
from core.scoring import SCORES
from eval.metrics import win_rates
from proof.length import Games, fit, main, said, same_order, slope_interval

STRENGTHS = {"m0": 1.0, "m1": 0.0, "m2": -1.0}
LENGTHS = {"m0": 2.0, "m1": 1.0, "m2": 0.5}  # better models write more


def games(count: int = 400) -> Games:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        a, b = rng.choice([*STRENGTHS], 2, replace=False)
        words = [max(1, int(20 * LENGTHS[m] * 2 ** rng.normal())) for m in (a, b)]
        texts = [["w " * n] for n in words]
        rows.append(Conversation(str(i), ["q"], *texts, model_a=a, model_b=b, group=str(i % 40)))
    return Games.of(rows)


@pytest.mark.parametrize("slope", [0.0, 0.7])
def test_the_slope_is_what_was_put_in_beside_the_strengths(slope: float) -> None:
    played = games()
    strengths = np.array([STRENGTHS[m] for m in played.models])
    won = expit(strengths[played.sides[:, 0]] - strengths[played.sides[:, 1]] + slope * played.doublings)
    found = fit(played, won, np.ones(len(won)), length=True)
    assert found.slope == pytest.approx(slope, abs=0.02)
    assert np.diff(found.strengths) == pytest.approx(np.diff(strengths), abs=0.05)
    low, high = slope_interval(played, won)
    assert low <= found.slope <= high
    plain = fit(played, won, np.ones(len(won)), length=False)
    longer = plain.strengths[0] - plain.strengths[2]
    assert plain.slope == 0 and (longer > 2.5 if slope else longer == pytest.approx(2, abs=0.05))


def test_shares_are_those_of_the_mean_logits() -> None:
    logits = pl.DataFrame({"id": ["x", "y"], "logits": [[0.0, 0.0, -30.0], [np.log(3.0), 0.0, 0.0]]})
    assert said(logits, ["y", "x"]) == pytest.approx([0.7, 0.5])
    assert win_rates(np.array([[0.2, 0.4, 0.4]])) == pytest.approx([0.4])


def test_of_models_that_never_met_the_order_does_not_count() -> None:
    sides = np.array([[0, 1], [1, 0], [2, 3]])
    mine = np.array([1.0, 0.0, 5.0, 4.0])
    assert same_order(mine, np.array([10.0, 9.0, 1.0, 0.0]), sides) == 1  # the halves in another order
    assert same_order(mine, np.array([10.0, 9.0, 0.0, 1.0]), sides) == 0


@pytest.mark.parametrize(
    ("named", "votes", "told"),
    [
        (4, 4, "4 of 6 rows count"),
        (4, 2, "2 of 6 rows count"),
        (0, 4, "none of the 6 rows names both models and has votes"),
    ],
)
def test_rows_without_models_or_votes_are_counted_and_people_stay_the_measure(
    named: int,
    votes: int,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        Conversation(
            str(i),
            [f"q{i}"],
            ["w " * (i + 1)],
            ["w"],
            model_a="m0" if i < named else None,
            model_b="m1",
            votes=[1.0, 0.0, 0.0] if i < votes else None,
            group=str(i),
        )
        for i in range(6)
    ]
    data = tmp_path / "data"
    data.mkdir()
    save_conversations(data, to_frame(rows))
    Artefact(data, "prepare", {}, [], tmp_path).finish()
    judged = [{"id": c.id, "order": o, "judge": "prior", "logits": [0.1, 0.0, 0.0]} for c in rows for o in ("ab", "ba")]
    logits = pl.col("logits").cast(SCORES["logits"])
    pl.DataFrame(judged).with_columns(logits).write_parquet(tmp_path / "predictions.parquet")
    monkeypatch.setattr(sys, "argv", ["length", str(tmp_path), "--data", str(data)])
    if told.startswith("none"):
        with pytest.raises(SystemExit, match="2"):
            main()
        assert told in capsys.readouterr().err
    else:
        main()
        said = capsys.readouterr().out
        assert told in said and "people: " in said
