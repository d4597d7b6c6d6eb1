"""A comparison says of each judge what it would be told alone, and of two judges what the draws say of both."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from core.scoring import SWAPPED
from eval.bootstrap import Resampling
from eval.comparison import BASELINE, Comparison, Roles, compare
from eval.means import Difference, paired_difference
from eval.metrics import human_rows, log_loss_rows, predict, repeated
from eval.recalibration import IDENTITY, Recalibration
from eval.reliability import calibration_errors
from tests.eval.alone import figures_alone

NOISE = {"teacher": 0.2, "student": 0.6, "student_w8a8": 0.6, BASELINE: 2.5}
RESAMPLING, BINS = Resampling(100, 3), 8
COOLER = Recalibration((0.6, 0.6, 0.6), (0.0, 0.0, 0.0))


def simulate(rows: int, seed: int) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray]:
    """Judges that know the law of votes more or less; a third of the rows has three votes."""
    rng = np.random.default_rng(seed)
    law = rng.normal(0, 1.5, (rows, 3))
    judges = {}
    for name, noise in NOISE.items():
        ab, ba = law + noise * rng.normal(size=(2, rows, 3))
        judges[name] = (ab.astype(np.float32), ba.astype(np.float32))
    votes = rng.multinomial(np.where(rng.random(rows) < 1 / 3, 3, 1), softmax(law, axis=1)).astype(float)
    return judges, votes, rng.integers(rows // 2, size=rows).astype(str)


def compared(
    *data: Any,
    teacher: str | None = "teacher",
    recalibrations: dict[str, Recalibration] | None = None,
) -> Comparison:
    roles = Roles(teacher, "student")
    return compare(*data, roles, recalibrations or {}, resampling=RESAMPLING, bins=BINS)


def close(value: Any, other: Any) -> bool:
    """Equal in structure, and in numbers up to rounding."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(close(value[k], other[k]) for k in value)
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(map(close, value, other))
    return bool(value == pytest.approx(other, abs=1e-6))


def test_each_judge_has_the_figures_that_it_has_alone_and_its_differences_are_paired() -> None:
    judges, votes, groups = simulate(400, 0)
    found = compared(judges, votes, groups)
    losses = {name: log_loss_rows(predict(*pair), votes) for name, pair in judges.items()}
    for name, pair in judges.items():
        alone = figures_alone(*pair, votes, groups, RESAMPLING, BINS)
        together = {key: getattr(found.judges[name], key) for key in alone if not key.startswith("kl_")}
        assert close({key: alone[key] for key in together}, together)
    for key, rival in (("surface", BASELINE), ("reference", "student")):
        assert found.differences[key].keys() == judges.keys() - {rival}
        for name, gains in found.differences[key].items():
            once = paired_difference(losses[rival], losses[name], groups, RESAMPLING)
            assert close(asdict(once), asdict(gains.log_loss))
            assert getattr(found.judges[name], f"beats_{key}") == gains.log_loss.beats
            assert gains.accuracy.difference == pytest.approx(
                found.judges[name].accuracy - found.judges[rival].accuracy
            ), "above zero is better, of accuracy too"
    assert found.judges["student"].beats_surface is True
    assert found.judges["student"].beats_reference is None
    assert found.judges[BASELINE].beats_reference is False
    assert (found.rows, found.groups, found.draws) == (400, len({*groups}), 100)
    json.dumps(asdict(found), allow_nan=False)


def test_a_judge_more_changes_nothing_about_the_others() -> None:
    judges, votes, groups = simulate(200, 1)
    every = compared(judges, votes, groups)
    few = compared({name: judges[name] for name in ("student", "teacher")}, votes, groups)
    assert few.baseline is None and every.baseline == BASELINE and few.differences.keys() == {"reference"}
    assert few.judges["teacher"].beats_surface is None and every.judges["teacher"].beats_surface
    teacher = replace(every.judges["teacher"], beats_surface=None)
    assert close(asdict(few.judges["teacher"]), asdict(teacher))


def test_people_are_measured_where_several_voted_and_judges_on_the_same_rows() -> None:
    judges, votes, groups = simulate(600, 2)
    found = compared(judges, votes, groups)
    several = repeated(votes)
    humans, teacher = found.humans, found.judges["teacher"].repeated
    assert humans is not None and humans.rows == several.sum() and teacher is not None
    for name, row in human_rows(votes[several]).items():
        low, high = getattr(humans, f"{name}_ci")
        assert getattr(humans, name) == pytest.approx(row.mean()) and low < row.mean() < high
    losses = log_loss_rows(predict(*judges["teacher"]), votes)[several]
    assert teacher.log_loss == pytest.approx(losses.mean())
    assert humans.entropy < teacher.log_loss
    single = compared(judges, np.eye(3)[votes.argmax(axis=1)], groups)
    assert single.humans is None and single.judges["teacher"].repeated is None


def test_kl_is_to_the_teacher_and_zero_for_itself() -> None:
    judges, votes, groups = simulate(200, 3)
    found = compared(judges, votes, groups).judges
    distances = {name: of.kl_to_teacher for name, of in found.items()}
    assert distances["teacher"] == 0 < distances["student"] < distances[BASELINE]  # type: ignore[operator]
    absent = compared(judges, votes, groups, teacher=None).judges["student"]
    assert absent.kl_to_teacher is None and absent.kl_to_teacher_ci is None


def test_recalibration_is_reported_beside_what_it_replaces() -> None:
    judges, votes, groups = simulate(400, 4)
    found = compared(judges, votes, groups, recalibrations={BASELINE: COOLER, "student": IDENTITY}).judges
    cooler, same = found[BASELINE].recalibrated, found["student"].recalibrated
    assert cooler is not None and same is not None
    pair = [COOLER(logits) for logits in judges[BASELINE]]
    assert cooler.log_loss == pytest.approx(log_loss_rows(predict(*pair), votes).mean())
    assert cooler.gain.beats and cooler.ece == calibration_errors(predict(*pair), votes, 8)["ece"]
    assert cooler.gain.difference == pytest.approx(found[BASELINE].log_loss - cooler.log_loss)
    assert same.gain == Difference(0, (0, 0), 1, False)
    assert same.scale == (1, 1, 1) and found["teacher"].recalibrated is None


def test_exchanging_the_sides_exchanges_the_tables_of_a_and_b_and_nothing_else() -> None:
    judges, votes, groups = simulate(300, 5)
    swapped = {name: (ba[:, SWAPPED], ab[:, SWAPPED]) for name, (ab, ba) in judges.items()}
    before = asdict(compared(judges, votes, groups, recalibrations={"student": COOLER}))
    after = asdict(compared(swapped, votes[:, SWAPPED], groups, recalibrations={"student": COOLER}))
    for judge in after["judges"].values():
        for table in (judge["reliability_by_label"], (judge["recalibrated"] or {}).get("reliability_by_label")):
            if table:
                table["a"], table["b"] = table["b"], table["a"]
    assert close(before, after)


def test_logits_that_are_not_finite_and_a_single_group_are_refused() -> None:
    judges, votes, groups = simulate(20, 6)
    judges["student"][0][7, 1] = np.inf
    with pytest.raises(ValueError, match="row 7"):
        compared(judges, votes, groups)
    with pytest.raises(ValueError, match="share one group"):
        compared(judges, votes, ["one"] * 20)
