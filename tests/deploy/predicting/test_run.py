"""Predicting a test file: whatever is in it, wherever it is stopped, on however many devices, every row is answered."""

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
from scipy.special import softmax

from core.artefacts.building import STARTED
from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from core.errors import UserError
from core.exported import open_exported
from core.locks import alone
from core.records import Conversation
from core.scoring import logits_by_order, score_conversations, swap_average
from core.store.parts import part_files
from core.store.reading import read_parts
from deploy.predicting.cascade import read_scores
from deploy.predicting.devices import environment_of
from deploy.predicting.engine_notes import note_of, tell_marked
from deploy.predicting.run import discard
from deploy.predicting.submission import COLUMNS, check_submission
from deploy.predicting.unlabelled import Source, read_unlabelled
from distill import predict
from distill.config import Config
from eval.recalibration import Recalibration, write_recalibration
from eval.second_opinions import Opinions, draw_pilot, in_turn, margin
from teachers.interrupts import STOPPED
from teachers.scorers.opening import open_scorer
from teachers.scorers.transformers import TransformersScorer
from tests.artefacts import finish_again
from tests.composing import configured, scorer
from tests.deploy.predicting.predictions import (
    FAST,
    Configure,
    answers,
    cells,
    finish_export,
    killed_after,
    parts_folder,
    write_csv,
)
from tests.device import Device
from tests.running import own_process, refuses, succeeds
from tests.tiny_exports import with_swapped_labels
from tests.tiny_models import tiny_judge

pytestmark = pytest.mark.timeout(600)
ROWS, TIMES = 25, 8
BAD_ROWS = {"not json": ("17", "oops", '["x"]', '["y"]'), "rounds": ("18", '["q"]', '["x", "z"]', '["y"]')}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_export(tiny_judge(tmp_path_factory.mktemp("export"), "llama"))


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return simulate(SimulateConfig(ROWS, seed=3))[0]


@pytest.fixture(scope="module")
def file(conversations: list[Conversation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("kaggle") / "test.csv", [cells(c) for c in conversations])


@pytest.fixture(scope="module")
def long_file(conversations: list[Conversation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same conversations under `TIMES` ids each: a run that is to be stopped should not be done before."""
    rows = [replace(c, id=f"{time}-{c.id}") for time in range(TIMES) for c in conversations]
    return write_csv(tmp_path_factory.mktemp("long") / "test.csv", [cells(c) for c in rows])


@pytest.fixture(scope="module")
def judged(export: Path, conversations: list[Conversation]) -> pl.DataFrame:
    """What the judge says of every conversation in both orders, without any of the machinery under test."""
    judge = open_exported(export)
    with open_scorer(export, scorer("transformers"), judge.max_tokens) as opened:
        return score_conversations(opened, judge.renderer, conversations)


@pytest.fixture
def configure(export: Path, file: Path, tmp_path: Path) -> Configure:
    def build(*more: str) -> Config:
        overrides = [f"paths.root={tmp_path}", f"input={file}", f"output={tmp_path / 'submission.csv'}"]
        return configured(*overrides, f"predict.model={export}", *FAST, *more)

    return build


def expected(judged: pl.DataFrame) -> np.ndarray:
    return np.asarray(softmax(swap_average(judged)["logits"].to_numpy().astype(float), axis=1))


def test_every_row_gets_the_mean_of_both_orders_and_nothing_is_left_behind(
    configure: Configure, conversations: list[Conversation], judged: pl.DataFrame
) -> None:
    config = configure()
    predict.main(config)
    ids, table = answers(config)
    assert ids == [c.id for c in conversations]
    assert np.abs(table - expected(judged)).max() < 1e-5
    assert np.abs(table.sum(axis=1) - 1).max() < 1e-9
    assert [path.name for path in Path(str(config.output)).parent.iterdir()] == ["submission.csv"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_other_formats_with_votes_that_make_no_sense(
    configure: Configure, conversations: list[Conversation], judged: pl.DataFrame, tmp_path: Path, suffix: str
) -> None:
    table = pl.DataFrame(
        {
            "id": range(ROWS),
            **{name: [getattr(c, name) for c in conversations] for name in ("prompt", "response_a", "response_b")},
            **{name: [7] * ROWS for name in ("winner_model_a", "winner_model_b", "winner_tie")},
        }
    )
    path = tmp_path / f"test.{suffix}"
    table.write_parquet(path) if suffix == "parquet" else table.write_ndjson(path)
    config = configure(f"input={path}")
    predict.main(config)
    ids, found = answers(config)
    assert ids == [str(k) for k in range(ROWS)]
    assert np.abs(found - expected(judged)).max() < 1e-5


def test_whatever_a_row_holds_it_is_answered_in_its_place(
    configure: Configure, conversations: list[Conversation], judged: pl.DataFrame, tmp_path: Path
) -> None:
    usual = [cells(c) for c in conversations]
    odd = [
        ("007", *usual[0][1:]),  # the same conversation under another id
        ("a,\"b'", *usual[1][1:]),
        ("same", '["q"]', '["yes  sir"]', '["yes sir\\n"]'),
        ("one", '["q"]', '[""]', '["y"]'),
        ("other", '["q"]', '["y"]', "[null]"),
        ("none", '["q"]', '["  "]', "[null]"),
        ("null round", '["q", null]', '["x", null]', '["y", "z"]'),
        *BAD_ROWS.values(),
    ]
    rows = [*odd[:4], *usual, *odd[4:]]
    config = configure(f"input={write_csv(tmp_path / 'odd.csv', rows)}", "predict.rules.one_empty=[0.1,0.7,0.2]")
    config = replace(config, data=replace(config.data, max_rejected=0.5))
    predict.main(config)
    ids, table = answers(config)
    assert ids == [row[0] for row in rows]
    assert (table > 0).all() and (table < 1).all() and np.abs(table.sum(axis=1) - 1).max() < 1e-9
    found = dict(zip(ids, table, strict=True))
    assert np.allclose(found["same"], config.predict.rules.identical or [])
    assert np.allclose(found["one"], [0.1, 0.7, 0.2]) and np.allclose(found["other"], [0.7, 0.1, 0.2])
    usual_answers = expected(judged)
    for c, answer in zip(conversations, usual_answers, strict=True):
        assert np.abs(found[c.id] - answer).max() < 1e-5
    assert np.abs(found["007"] - usual_answers[0]).max() < 1e-5
    by_judge = [row[0] for row in rows if row[0] not in ("same", "one", "other", "17", "18")]
    prior = np.mean([found[name] for name in by_judge], axis=0)
    assert np.allclose(found["17"], prior) and np.allclose(found["18"], prior)
    listed = pl.read_csv(tmp_path / "submission.unreadable.csv", infer_schema=False)
    assert listed["id"].to_list() == ["17", "18"] and "not JSON" in listed["reason"][0]


def test_rules_can_be_left_to_the_judge(configure: Configure, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "same.csv", [("same", '["q"]', '["yes"]', '["yes"]')])
    config = configure(f"input={path}", "predict.rules.identical=null")
    rows = read_unlabelled(Source(config.input, config.data, config.limit, config.predict.rules))
    assert not rows.ruled and len(rows.conversations) == 1


def test_made_up_ids_are_told(configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("row,prompt,response_a,response_b\n1,q,yes,yes\n")
    predict.main(configure(f"input={path}"))
    assert any("has no column of ids (id, pair_id" in message for message in caplog.messages)


def test_nothing_to_judge_needs_no_judge(configure: Configure, tmp_path: Path) -> None:
    rows = [("same", '["q"]', '["yes"]', '["yes"]'), *BAD_ROWS.values()]
    config = configure(f"input={write_csv(tmp_path / 'bad.csv', rows)}", "data.max_rejected=0.9")
    predict.main(config)
    found = answers(config)[1]
    assert found[0].argmax() == 2 and np.allclose(found[1:], 1 / 3)


def test_a_file_of_which_no_row_can_be_read_is_refused(configure: Configure, tmp_path: Path) -> None:
    config = configure(f"input={write_csv(tmp_path / 'empty.csv', [('1', '', 'x', 'y'), ('2', '', 'y', 'x')])}")
    with pytest.raises(ValueError, match=r"2 of 2 rows cannot be read, .*: 2 x prompt is empty, such as line 2, id 1"):
        predict.main(config)
    assert not Path(str(config.output)).exists()


def test_a_file_that_is_mostly_unreadable_is_refused_with_the_commonest_reason(
    configure: Configure, tmp_path: Path
) -> None:
    rows = [(str(i), "Hi" if i % 10 < 2 else '["Hi"]', '["x"]', '["x"]') for i in range(20)]
    config = configure(f"input={write_csv(tmp_path / 'plain.csv', rows)}", "data.max_rejected=0.1")
    message = r"4 of 20 rows cannot be read, data.max_rejected=0.1: 4 x prompt is not JSON, such as line 2, id 0"
    with pytest.raises(UserError, match=message):
        predict.main(config)
    assert not Path(str(config.output)).exists()
    assert len(pl.read_csv(tmp_path / "submission.unreadable.csv")) == 4
    predict.main(replace(config, data=replace(config.data, max_rejected=0.2)))
    assert len(answers(config)[0]) == 20


def test_the_recalibration_beside_the_model_counts(
    configure: Configure, export: Path, judged: pl.DataFrame, tmp_path: Path
) -> None:
    model = shutil.copytree(export, tmp_path / "calibrated")
    recalibration = Recalibration((0.5, 0.5, 0.7), (0.0, 0.0, 0.3))
    write_recalibration(model, recalibration, {})
    config = configure(f"predict.model={model}")
    with pytest.raises(UserError, match=r"calibrated has changed .* \(calibration.json was not there\)"):
        predict.main(config)
    finish_again(model)
    predict.main(config)
    logits = recalibration(swap_average(judged)["logits"].to_numpy())
    assert np.abs(answers(config)[1] - softmax(logits, axis=1)).max() < 1e-5


def both_orders(config: Config) -> list[str]:
    """Which conversations were judged twice, of a run that is not finished."""
    return read_scores(parts_folder(config)).filter(pl.col("order") == "ba")["id"].to_list()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the parts of a finished run, to look into."""
    monkeypatch.setattr("deploy.predicting.run.discard", lambda parts: None)


@pytest.mark.usefixtures("kept")
def test_a_share_of_second_orders_goes_to_those_that_need_it(
    configure: Configure, conversations: list[Conversation], judged: pl.DataFrame
) -> None:
    config = configure("predict.second_opinions=0.4", "predict.pilot=2")
    predict.main(config)
    twice = both_orders(config)
    assert len(twice) == 10
    rows = sorted(conversations, key=lambda c: (c.prompt, c.id))
    first, second = logits_by_order(judged, [c.id for c in rows])
    tokens = dict(judged.filter(pl.col("order") == "ab").select("id", "prompt_tokens").iter_rows())
    drawn = draw_pilot(ROWS, 10, 2)
    one = Opinions(first, first, np.array([tokens[c.id] for c in rows]))
    order = in_turn(one, drawn, (first[drawn] + second[drawn]) / 2)
    assert set(twice) == {rows[k].id for k in (*drawn, *order[:8])}
    once = judged.filter((pl.col("order") == "ab") | pl.col("id").is_in(twice))
    assert np.abs(answers(config)[1] - expected(once)).max() < 1e-5


def test_no_second_orders_at_all(configure: Configure, judged: pl.DataFrame) -> None:
    config = configure("predict.second_opinions=0")
    predict.main(config)
    assert np.abs(answers(config)[1] - expected(judged.filter(pl.col("order") == "ab"))).max() < 1e-5


def test_a_budget_that_is_used_up_leaves_one_order_and_says_so(
    configure: Configure, judged: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure("predict.minutes=0.001")
    with caplog.at_level(logging.INFO):
        predict.main(config)
    assert np.abs(answers(config)[1] - expected(judged.filter(pl.col("order") == "ab"))).max() < 1e-5
    assert f"{ROWS} of {ROWS} conversations (100%) were judged in one order only" in caplog.text
    low, high = np.quantile(margin(logits_by_order(judged, judged["id"].unique().to_list())[0]), (0, 1))
    assert f"{low:.3f} to {high:.3f}" in caplog.text
    listed = pl.read_csv(config.root / "submission.one_order.csv", schema_overrides={"id": pl.String})
    assert listed["id"].sort().to_list() == judged["id"].unique().sort().to_list()
    assert listed["margin"].min() == pytest.approx(low) and listed["margin"].max() == pytest.approx(high)


@pytest.mark.parametrize("pilot", [4, 0])
def test_a_budget_that_suffices_changes_nothing(configure: Configure, judged: pl.DataFrame, pilot: int) -> None:
    config = configure("predict.minutes=60", f"predict.pilot={pilot}")
    predict.main(config)
    assert np.abs(answers(config)[1] - expected(judged)).max() < 1e-5


def test_the_judge_leaves_the_device_free(configure: Configure, device: Device) -> None:
    predict.main(configure())
    device.check_left_free(scorers=1)


def test_an_engine_on_no_gpu_is_refused(configure: Configure) -> None:
    sizes = ("scorer@scorers.exported=vllm", "scorers.exported.engine_args.tensor_parallel_size=0")
    with pytest.raises(UserError, match="tensor_parallel_size=0: give a number of GPUs, 1 or more"):
        predict.main(configure("predict.devices=null", *sizes))


@pytest.mark.long
@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_on_two_devices_within_a_budget(
    configure: Configure, conversations: list[Conversation], judged: pl.DataFrame, tmp_path: Path, rows: int
) -> None:
    path = write_csv(tmp_path / "few.csv", [cells(c) for c in conversations[:rows]])
    config = configure(f"input={path}", "predict.devices=2", "predict.minutes=60")
    predict.main(config)
    assert np.abs(answers(config)[1] - expected(judged)[:rows]).max() < 1e-5


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.long)])
def test_killed_and_started_again_it_goes_on(
    configure: Configure, long_file: Path, judged: pl.DataFrame, devices: int
) -> None:
    config = configure(f"input={long_file}", f"predict.devices={devices}", "predict.minutes=60", "predict.pilot=16")
    assert killed_after(config, 4) == -signal.SIGKILL
    wait_until(lambda: not workers_of(config))
    before = {path: path.stat().st_mtime_ns for path in part_files(parts_folder(config))}
    assert before and not Path(str(config.output)).exists()
    predict.main(config)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in part_files(parts_folder(config))}.items()
    scored = read_parts(parts_folder(config))
    assert len(scored) == 2 * TIMES * ROWS and scored.select("id", "order").is_unique().all()
    assert np.abs(answers(config)[1] - np.tile(expected(judged), (TIMES, 1))).max() < 1e-5


@pytest.mark.usefixtures("kept")
@pytest.mark.long
def test_with_the_first_order_there_the_budget_goes_to_the_second(configure: Configure, judged: pl.DataFrame) -> None:
    predict.main(configure("predict.second_opinions=0"))
    config = configure("predict.minutes=60")
    Path(str(config.output)).unlink()
    predict.main(config)
    assert len(both_orders(config)) == ROWS
    assert np.abs(answers(config)[1] - expected(judged)).max() < 1e-5


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.long
def test_interrupted_it_finishes_what_is_in_hand_and_goes_on_later(
    configure: Configure, long_file: Path, judged: pl.DataFrame, devices: int
) -> None:
    settings = ("predict.minutes=60", "scorers.exported.batch_tokens=300")
    config = configure(f"input={long_file}", f"predict.devices={devices}", *settings)
    assert killed_after(config, 1, signal.SIGTERM) == STOPPED
    assert 0 < len(read_scores(parts_folder(config))) < 2 * TIMES * ROWS
    assert not workers_of(config)
    predict.main(configure(f"input={long_file}", "predict.devices=1"))  # on another number of devices, too
    assert np.abs(answers(config)[1] - np.tile(expected(judged), (TIMES, 1))).max() < 1e-5


def workers_of(config: Config) -> list[psutil.Process]:
    """Processes that hold a lock of the run's parts."""
    locks = {str(path) for path in parts_folder(config).glob(".lock-*")}
    return [p for p in psutil.process_iter() if locks & open_files(p)]


def open_files(process: psutil.Process) -> set[str]:
    try:
        return {file.path for file in process.open_files()}
    except psutil.Error:
        return set()


def wait_until(true: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.long
def test_a_device_that_dies_is_told_of_and_costs_nothing_that_is_written(
    configure: Configure, long_file: Path, judged: pl.DataFrame, tmp_path: Path
) -> None:
    config = configure(f"input={long_file}", "predict.devices=2", "scorers.exported.batch_tokens=300")
    message = tmp_path / "message"
    process = own_process(failing_predict, config, message)
    wait_until(lambda: len(part_files(parts_folder(config))) >= 2)
    workers_of(config)[0].kill()
    process.join()
    assert "ended early" in message.read_text() and "rerun the same command to resume" in message.read_text()
    there = len(read_scores(parts_folder(config)))
    assert there >= 2
    predict.main(config)
    assert np.abs(answers(config)[1] - np.tile(expected(judged), (TIMES, 1))).max() < 1e-5


def failing_predict(config: Config, message: Path) -> None:
    with pytest.raises(ValueError) as refusal:
        predict.main(config)
    message.write_text(str(refusal.value))


@pytest.mark.long
def test_parts_of_another_file_or_model_are_refused(
    configure: Configure, export: Path, long_file: Path, file: Path, tmp_path: Path
) -> None:
    config = configure(f"input={long_file}", "predict.second_opinions=0")
    killed_after(config, 1)
    with pytest.raises(ValueError, match=r"input\.sha256: there .* now "):
        predict.main(configure(f"input={file}"))
    model = shutil.copytree(export, tmp_path / "other_model")
    (model / "note.txt").write_text("another content")
    finish_export(model)
    with pytest.raises(ValueError, match=r"model: there .* now "):
        predict.main(configure(f"input={long_file}", f"predict.model={model}"))
    predict.main(configure(f"predict.model={model}", "overwrite=true"))


def test_killed_on_the_way_to_another_submission_it_goes_on(configure: Configure, long_file: Path) -> None:
    config = configure(f"input={long_file}", "predict.second_opinions=0", "overwrite=true")
    Path(str(config.output)).write_text("an earlier submission")
    killed_after(config, 2)
    written = [path.read_bytes() for path in part_files(parts_folder(config))]
    killed_after(config, 3)
    now = [path.read_bytes() for path in part_files(parts_folder(config))]
    assert written and all(part in now for part in written)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("input=missing.csv", "no such file"),
        ("output=null", "output=null"),
        ("predict.model=missing", "does not exist"),
    ],
)
def test_settings_that_make_no_sense_are_refused(configure: Configure, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict.main(configure(override))


def test_ids_that_a_submission_cannot_have_are_refused(configure: Configure, tmp_path: Path) -> None:
    row = ('["q"]', '["x"]', '["y"]')
    double = write_csv(tmp_path / "double.csv", [("1", *row), ("2", *row), ("1", *row)])
    with pytest.raises(ValueError, match=r"1 ids occur more than once, such as \['1'\]"):
        predict.main(configure(f"input={double}"))
    without = write_csv(tmp_path / "without.csv", [("1", *row), (" ", *row)])
    latin = tmp_path / "latin.csv"
    latin.write_bytes(double.read_bytes().replace(b"2,", b"\xe9,"))
    with pytest.raises(
        ValueError, match=r"latin.csv, row 3: id is not UTF-8: '\\udce9'\. .*: give this row one, in UTF-8"
    ):
        predict.main(configure(f"input={latin}"))
    (lone := tmp_path / "lone.jsonl").write_text(
        json.dumps({"id": "\ud83d", **dict.fromkeys(("prompt", "response_a", "response_b"), "")})
    )
    with pytest.raises(ValueError, match=r"lone.jsonl, row 1: id is not UTF-8: '\\ud83d'"):
        predict.main(configure(f"input={lone}"))
    with pytest.raises(
        ValueError, match=r"without.csv, row 3: id is missing: ' '\. A submission has a line for each id"
    ):
        predict.main(configure(f"input={without}"))


@pytest.mark.long
def test_an_engine_that_computes_something_else_judges_only_what_says_so(
    configure: Configure, export: Path, tmp_path: Path
) -> None:
    model = with_swapped_labels(export, tmp_path / "swapped")
    swapped, note = (f"predict.model={model}", "predict.minutes=60"), tmp_path / "submission.canaries.txt"
    with pytest.raises(UserError, match=r"computes something else here .* rms.*canaries.on_failure=warn continues"):
        predict.main(configure(*swapped))
    assert not (tmp_path / "submission.csv").exists() and not read_scores(parts_folder(configure())).height
    predict.main(configure(*swapped, "canaries.on_failure=warn"))  # goes on with the parts of the refused run
    assert "computes something else here" in note.read_text()
    predict.main(configure("overwrite=true"))
    assert not note.exists()


def predict_with_swapped_labels(config: Config) -> None:
    outputs = TransformersScorer._outputs
    TransformersScorer._outputs = lambda *given: outputs(*given)[:, [1, 0, 2]]  # type: ignore[method-assign]
    predict.main(config)


@pytest.mark.long
def test_a_submission_stays_marked_when_another_engine_finishes_it(
    configure: Configure, long_file: Path, tmp_path: Path
) -> None:
    given = (f"input={long_file}", "predict.second_opinions=0")
    killed_after(configure(*given, "canaries.on_failure=warn"), 2, run=predict_with_swapped_labels)
    predict.main(configure(*given))
    assert "computes something else here" in (tmp_path / "submission.canaries.txt").read_text()


def test_the_mark_of_a_wrong_engine_goes_with_what_it_judged_and_not_before(tmp_path: Path) -> None:
    parts, output = tmp_path / "s.csv.parts", tmp_path / "s.csv"
    (parts / STARTED).parent.mkdir(parents=True)
    (parts / ".canaries-0").write_text("it computes something else")
    for _ in range(2):  # killed before the submission was written, and run again
        tell_marked(parts, output)
        assert "something else" in note_of(output).read_text()
    discard(parts)
    assert not parts.exists()
    tell_marked(parts, output)
    assert not note_of(output).exists()


def test_a_submission_is_never_written_over(configure: Configure) -> None:
    config = configure()
    Path(str(config.output)).write_text("precious")
    with pytest.raises(ValueError, match="is there already"):
        predict.main(config)
    assert Path(str(config.output)).read_text() == "precious"


def test_an_output_that_is_its_input_is_refused_by_whatever_name(
    configure: Configure, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = shutil.copy(file, tmp_path / "test.csv")
    (tmp_path / "link.csv").symlink_to(own)
    os.link(own, tmp_path / "hard.csv")
    shutil.copy(file, tmp_path / "s.unreadable.csv")  # which a submission named s.csv would take for its own list
    outputs = [(own, "test.csv"), (own, "./test.csv"), (own, "link.csv"), ("link.csv", "test.csv"), (own, "hard.csv")]
    for source, output in (*outputs, ("s.unreadable.csv", "s.csv")):
        with pytest.raises(UserError, match="choose another output"):
            predict.main(configure(f"input={source}", f"output={output}", "overwrite=true"))
    assert Path(own).read_bytes() == (tmp_path / "s.unreadable.csv").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("output", "said"), [("folder.csv", "is a folder"), ("s.parquet", "end in .csv")])
def test_an_output_that_is_no_csv_file_is_refused_before_anything_is_judged(
    configure: Configure, tmp_path: Path, output: str, said: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=said):
        predict.main(configure(f"output={tmp_path / output}", "overwrite=true", "predict.model=missing"))


@pytest.mark.parametrize(
    "name", ["submission.csv.parts/mine.txt", "submission.unreadable.csv", "submission.one_order.csv"]
)
def test_files_that_it_did_not_write_are_kept(configure: Configure, tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("notes")
    with pytest.raises(UserError, match="this command did not write"):
        predict.main(configure("overwrite=true"))
    assert mine.read_text() == "notes"


@pytest.mark.long
def test_what_came_into_its_parts_meanwhile_is_kept(configure: Configure, long_file: Path) -> None:
    config = configure(f"input={long_file}", "predict.second_opinions=0")
    killed_after(config, 1)
    mine = parts_folder(config) / "mine.txt"
    mine.write_text("notes")
    predict.main(config)
    assert [path.name for path in parts_folder(config).iterdir()] == ["mine.txt"] and mine.read_text() == "notes"


def test_two_predictions_of_one_output_are_not_made_at_once(configure: Configure) -> None:
    config = configure()
    with alone(parts_folder(config)), pytest.raises(UserError, match=f"another process .pid {os.getpid()} on"):
        predict.main(config)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,0.2,0.3,0.5"], "1 ids, expected 2"),
        (["2,0.2,0.3,0.5", "1,0.2,0.3,0.5"], "in the order"),
        (["1,0.2,0.3,0.5", "3,0.2,0.3,0.5"], "1 foreign"),
        (["1,0.2,0.3,0.5", "2,0.2,0.3,0.51"], "1 rows not of sum one"),
        (["1,0.2,0.3,0.5", "2,-0.2,0.7,0.5"], "1 rows not within"),
        (["1,0.2,0.3,0.5", "2,nan,0.5,0.5"], "1 rows not a number"),
        (["1,0.2,0.3,0.5", "2,high,0.5,0.5"], "1 rows not a number"),
    ],
)
def test_a_submission_that_would_be_refused_is_recognised(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    with pytest.raises(ValueError, match=message):
        check_submission(path, ["1", "2"])
    path.write_text("id,winner_model_a,winner_tie,winner_model_b\n1,0.2,0.3,0.5\n2,0.2,0.3,0.5\n")
    with pytest.raises(ValueError, match="has the columns"):
        check_submission(path, ["1", "2"])


def test_a_process_sees_its_own_gpus_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment_of(1, 2, span=1)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert [environment_of(k, 2, span=2)["CUDA_VISIBLE_DEVICES"] for k in range(2)] == ["3,5", "6,7"]


@pytest.mark.parametrize(
    ("given", "threads"), [("4,2", "4"), (" 3 ", "3"), ("", "1"), ("0", "1"), ("many", "1"), (None, "1")]
)
def test_threads_are_shared_out_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, given: str | None, threads: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given) if given is not None else monkeypatch.delenv("OMP_NUM_THREADS")
    assert environment_of(0, len(os.sched_getaffinity(0)), span=1)["OMP_NUM_THREADS"] == threads


@pytest.mark.long
def test_through_the_door_with_vllm(
    export: Path, file: Path, tmp_path: Path, conversations: list[Conversation], judged: pl.DataFrame
) -> None:
    output = tmp_path / "submission.csv"
    odd = tmp_path / "export[1]"  # vLLM takes a folder's name for a pattern
    odd.symlink_to(export)
    arguments = [f"input={file}", f"output={output}", f"predict.model='{odd}'", f"paths.root={tmp_path}"]
    printed = succeeds("distill.predict", *arguments, "predict.minutes=30", "predict.second_opinions=0.4")
    assert f"{ROWS} rows, checked" in printed and f"15 of {ROWS} conversations (60%)" in printed
    found = pl.read_csv(output, schema_overrides={"id": pl.String})
    assert found["id"].to_list() == [c.id for c in conversations]
    once, twice = expected(judged.filter(pl.col("order") == "ab")), expected(judged)
    table = found.drop("id").to_numpy()
    near = np.minimum(np.abs(table - once).max(axis=1), np.abs(table - twice).max(axis=1))
    assert near.max() < 1e-3
    assert "is there already" in refuses("distill.predict", *arguments)
