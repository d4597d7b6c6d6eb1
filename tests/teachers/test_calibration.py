"""Calibrated targets: any teacher gets a temperature fitted on other folds' votes; saturated targets are warned of."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.data.table import load_conversations
from core.labels import LABELS, WITHOUT_TIES
from core.naming import run_name
from core.provenance import Learned
from core.records import ORDERS, TEST, Conversation
from core.store.parts import NO_FOLD
from core.store.reading import read_logits
from core.store.rows import LOGITS
from core.store.seen import learned_by_judges
from core.store.targets import soft_targets
from distill import prepare, teacher
from distill.config import Config
from distill.logits import logits_folder
from distill.status.inputs import logits_stages
from distill.training_run import run_identity
from teachers.calibration import log_loss_of_votes, tell_calibration, write_calibrated
from teachers.derived import write_derived
from tests.composing import configured

TOO_SURE = 6.0
HASHES = {"prompt": "p", "template": "t"}


def arena(count: int = 600) -> tuple[list[Conversation], np.ndarray]:
    """Conversations whose votes are drawn from the logits that are given with them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, 3))
    votes = [rng.multinomial(1, p).astype(float).tolist() for p in softmax(logits, axis=1)]
    rows = [
        Conversation(f"c{i}", [f"q{i}"], ["x"], ["y"], votes=votes[i], fold=TEST if i % 4 == 3 else i % 4)
        for i in range(count)
    ]
    return rows, logits


def store_of(folder: Path, rows: Sequence[Conversation], logits: np.ndarray) -> Path:
    table = pl.DataFrame(
        {
            "id": [c.id for c in rows for _ in ORDERS],
            "order": [order for _ in rows for order in ORDERS],
            "logits": np.repeat(logits, 2, axis=0).astype(np.float32),
            "fingerprint": pl.Series([c.sided_fingerprint() for c in rows for _ in ORDERS], dtype=pl.UInt64),
        }
    ).with_columns(prompt_tokens=9, truncated=False, judge_fold=NO_FOLD, in_sample=False, outside=pl.lit(None))
    artefact = Artefact(folder, "teacher", {}, [], folder.parent)
    write_derived(artefact, table.cast({"outside": LOGITS["outside"]}), {NO_FOLD: Learned()}, HASHES, "j", LABELS)
    return folder


def loss(rows: Sequence[Conversation], targets: dict[str, list[float]]) -> float:
    return float(-np.mean([np.array(c.votes) @ log_softmax(np.array(targets[c.id])) for c in rows if c.votes]))


def targets(store: Path, rows: Sequence[Conversation]) -> dict[str, list[float]]:
    return soft_targets(store, rows, 0, "out_of_fold", None).logits


def test_a_teacher_that_is_too_sure_is_told_and_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, logits = arena()
    given = store_of(tmp_path / "sure", rows, logits * TOO_SURE)
    with caplog.at_level(logging.INFO):
        tell_calibration(given, rows, LABELS, scaled=False)
    (told,) = [record.message for record in caplog.records if "log loss" in record.message]
    assert "conversations not learned from, 1.0" in told and "with the temperatures" in told
    scaled = tmp_path / "sure,calibrated"
    write_calibrated(
        Artefact(scaled, "teacher", {"limit": None}, [given], tmp_path), given, rows, LABELS, "out_of_fold"
    )
    outside = [c for c in rows if c.fold != TEST]
    before, after = loss(outside, targets(given, rows)), loss(outside, targets(scaled, rows))
    assert f"log loss {before:.4f} on the votes of {len(outside)}" in told and f"{after:.4f} with the" in told
    found = [float(t) for t in told.split("temperatures ")[1].split(" (")[0].split(", ")]
    assert np.abs(np.array(found) - TOO_SURE).max() < 1.5 and after < before - 0.3
    test = [c for c in rows if c.fold == TEST]
    assert loss(test, targets(scaled, rows)) < loss(test, targets(given, rows)) - 0.3  # whose votes fit nothing


def test_a_fold_s_own_votes_and_those_of_the_test_split_do_not_scale_it(tmp_path: Path) -> None:
    rows, logits = arena()
    given = store_of(tmp_path / "sure", rows, logits * TOO_SURE)
    changed = [replace(c, votes=[0.0, 0.0, 1.0]) if c.fold in (1, TEST) else c for c in rows]
    found = {}
    for name, of in (("before", rows), ("after", changed)):
        artefact = Artefact(tmp_path / name, "teacher", {"limit": None}, [given], tmp_path)
        write_calibrated(artefact, given, of, LABELS, "out_of_fold")
        found[name] = targets(artefact.folder, rows)
    same = {c.fold for c in rows if np.allclose(found["before"][c.id], found["after"][c.id])}
    assert same == {1}
    learned = learned_by_judges(tmp_path / "before", [1])
    assert learned == Learned.of(c for c in rows if c.fold not in (1, TEST))


@pytest.mark.parametrize(("sure", "voted", "scaled"), [(60.0, True, False), (60.0, False, False), (60.0, True, True)])
def test_saturated_probabilities_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sure: float, voted: bool, scaled: bool
) -> None:
    rows, logits = arena(200)
    rows = rows if voted else [replace(c, votes=None) for c in rows]
    tell_calibration(store_of(tmp_path / "sure", rows, logits * sure), rows, LABELS, scaled)
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == (not scaled)
    if told:
        remedy = "set teacher.temperature_scaling=true" if voted else "votes to fit a temperature are lacking"
        assert "these probabilities are saturated, with a median entropy of" in told[0] and told[0].endswith(remedy)
    caplog.clear()
    tell_calibration(store_of(tmp_path / "fair", rows, logits), rows, LABELS, scaled=False)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_any_teacher_through_the_stage(tmp_path: Path) -> None:
    """The teacher's own logits stay, so that a switch costs nothing; a student's run and its targets follow it."""

    def of(*more: str) -> Config:
        stored = ["teacher=stored", "teacher.name=theirs", f"teacher.stored.file={tmp_path / 'theirs.csv'}"]
        stored += ["teacher.rows=out_of_fold"]
        return configured("+exp=smoke", f"paths.root={tmp_path}", *stored, *more)

    prepare.main(of())
    rows = load_conversations(tmp_path / "data" / "smoke")
    p = softmax(np.random.default_rng(1).normal(size=(len(rows), 3)) * 5, axis=1)
    table = {"id": [c.id for c in rows]} | {f"p_{label}": p[:, i] for i, label in enumerate(LABELS)}
    pl.DataFrame(table).write_csv(tmp_path / "theirs.csv")
    plain, scaled = of(), of("teacher.temperature_scaling=true")
    teacher.main(plain)
    before = (logits_folder(plain) / MANIFEST).read_bytes()
    teacher.main(replace(scaled, limit=None))
    assert logits_folder(scaled) == tmp_path / "logits" / "theirs,calibrated"
    assert (logits_folder(plain) / MANIFEST).read_bytes() == before
    own, other = (read_logits(logits_folder(c), "").sort("id", "order") for c in (plain, scaled))
    ratio = log_softmax(own["logits"].to_numpy(), 1), log_softmax(other["logits"].to_numpy(), 1)
    assert own["id"].equals(other["id"]) and not np.allclose(*ratio)
    assert [stage.state.name for stage in logits_stages(scaled)] == ["done", "done"]
    assert "temperature_scaling" not in run_identity(plain)["teacher"]  # type: ignore[operator]
    assert run_identity(scaled)["teacher"]["temperature_scaling"]  # type: ignore[index]
    assert run_name("smoke", ["teacher.temperature_scaling=true"]) == "smoke,teacher.temperature_scaling=true"
    with pytest.raises(ValueError, match=r"in_fold with teacher\.temperature_scaling=true"):
        teacher.main(of("teacher.temperature_scaling=true", "teacher.rows=in_fold"))
    pl.DataFrame(table).write_csv(tmp_path / "theirs.csv", float_precision=5)
    teacher.main(replace(scaled, overwrite=True))  # what follows from others is made again by itself
    assert [stage.state.name for stage in logits_stages(scaled)] == ["done", "done"]


def conversation(name: str, fold: int, votes: list[float] | None) -> Conversation:
    return Conversation(name, ["?"], ["x"], ["y"], votes=votes, fold=fold)


def test_the_log_loss_is_that_of_votes_outside_the_test_split_that_were_not_learned() -> None:
    rows = [
        conversation("one", 0, [1, 0, 0]),
        conversation("two", 1, [0, 1, 1]),
        conversation("learned", 1, [1, 0, 0]),
        conversation("unvoted", 1, None),
        conversation("test", TEST, [1, 0, 0]),
    ]
    logits = {"one": [3.0, 1.0, 0.0], "two": [0.0, 2.0, 1.0]}
    scores = pl.DataFrame(
        [
            {
                "id": c.id,
                "order": order,
                "logits": np.add(logits.get(c.id, [9.0, 0.0, 0.0]), (0.5, 0, 0) if order == "ab" else (-0.5, 0, 0)),
                "in_sample": c.id == "learned",
            }
            for c in rows
            for order in ORDERS
        ],
        schema_overrides={"logits": pl.Array(pl.Float32, 3)},
    )
    chances = {name: np.exp(of) / np.exp(of).sum() for name, of in logits.items()}
    expected = -(math.log(chances["one"][0]) + math.log(chances["two"][1]) + math.log(chances["two"][2])) / 3
    assert log_loss_of_votes(scores, rows) == (pytest.approx(expected), 2, pytest.approx(math.log(3)))
    assert log_loss_of_votes(scores, rows[2:]) is None


def test_without_ties_the_log_loss_is_that_of_a_and_b() -> None:
    rows = [conversation("one", 0, [1, 0, 0]), conversation("two", 1, [0, 1, 0])]
    scores = pl.DataFrame(
        [{"id": c.id, "order": order, "logits": [1.0, 0.0, 9.0], "in_sample": False} for c in rows for order in ORDERS],
        schema_overrides={"logits": pl.Array(pl.Float32, 3)},
    )
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2  # whatever it thinks of ties
    assert log_loss_of_votes(scores, rows, WITHOUT_TIES) == (pytest.approx(expected), 2, pytest.approx(math.log(2)))
