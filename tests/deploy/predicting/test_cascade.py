"""A small judge that asks a large one: who judged which row, whatever stops it, in time, and what makes no sense."""

import json
import logging
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import softmax

from core.artefacts.contents import MANIFEST
from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from core.errors import UserError
from core.exported import open_exported
from core.json_files import write_json
from core.records import ORDERS, Conversation, Order
from core.scoring import logits_by_order, score_conversations
from core.store.parts import part_files
from core.tables import read_csv
from deploy.predicting import budget, cascade, judging, run
from deploy.predicting.budget import Budget, Speed, noted_speed, speed_note, until
from deploy.predicting.cascade import JUDGED, Judge
from deploy.predicting.judging import ShareJudge
from deploy.predicting.outputs import store_of
from distill import predict
from distill.config import Config
from eval.recalibration import Recalibration, write_recalibration
from eval.second_opinions import Opinions, draw_pilot, in_turn
from teachers.scorers.opening import open_scorer
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
from tests.running import refuses, succeeds
from tests.tiny_models import tiny_judge

ROWS = 40
HALF = ("predict.second_opinions=0.5", "predict.pilot=5")
COOLER = Recalibration((0.5, 0.5, 0.7), (0.0, 0.0, 0.3))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def exports(root: Path) -> dict[str, Path]:
    """Judges of other seeds; the large one is recalibrated."""
    folders = {name: root / "exports" / "default" / name for name in ("small", "large", "huge")}
    for seed, (name, folder) in enumerate(folders.items()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        finish_export(tiny_judge(folder, "llama", seed))
        if name == "large":
            write_recalibration(folder, COOLER, {})
            finish_again(folder)
    return folders


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return simulate(SimulateConfig(ROWS, seed=3))[0]


@pytest.fixture
def configure(root: Path, exports: dict[str, Path], conversations: list[Conversation], tmp_path: Path) -> Configure:
    file = write_csv(tmp_path / "test.csv", [cells(c) for c in conversations])

    def build(*more: str) -> Config:
        overrides = [f"paths.root={root}", f"input={file}", f"output={tmp_path / 'submission.csv'}"]
        return configured(*overrides, "predict.cascade=[small,large]", *FAST, *more)

    return build


@pytest.fixture(scope="module")
def said(exports: dict[str, Path], conversations: list[Conversation]) -> dict[str, Opinions]:
    """What each judge says of every conversation, recalibrated, without any of the machinery under test."""
    found = {}
    for name, folder in exports.items():
        judge = open_exported(folder)
        with open_scorer(folder, scorer("transformers"), judge.max_tokens) as opened:
            scores = score_conversations(opened, judge.renderer, conversations)
        ids = [c.id for c in conversations]
        recalibrate = COOLER if name == "large" else np.asarray
        tokens = dict(scores.group_by("id").agg(pl.col("prompt_tokens").sum()).iter_rows())
        pair = (recalibrate(logits) for logits in logits_by_order(scores, ids))
        found[name] = Opinions(*pair, np.array([tokens[i] for i in ids], float))
    return found


def judges_of(config: Config) -> list[str | None]:
    output = Path(str(config.output))
    return read_csv(output.with_name(f"{output.stem}.judges.csv"))["judge"].to_list()


def going_on(first: Opinions, second: Opinions, rows: Sequence[int], share: float, pilot: int) -> set[int]:
    """Which of `rows`, in the order of prompts, a share of which goes on, are asked again: found without any engine."""
    quota = round(share * len(rows))
    at = [*rows]
    drawn = draw_pilot(len(at), quota, pilot)
    before = Opinions(first.ab[at], first.ba[at], first.tokens[at])
    rest = in_turn(before, drawn, second.logits[at][drawn])
    return {at[p] for p in (*drawn, *rest[: quota - len(drawn)])}


def by_prompt(conversations: list[Conversation]) -> list[int]:
    return sorted(range(ROWS), key=lambda i: (conversations[i].prompt, conversations[i].id))


def test_rows_go_on_to_the_judge_that_they_need_and_each_has_the_last_word_on_it(
    configure: Configure,
    conversations: list[Conversation],
    said: dict[str, Opinions],
    device: Device,
    tmp_path: Path,
) -> None:
    config = configure(*HALF)
    predict.main(config)
    device.check_left_free(scorers=2)  # one after another
    asked = going_on(said["small"], said["large"], by_prompt(conversations), 0.5, 5)
    assert len(asked) == ROWS // 2
    assert judges_of(config) == ["large" if i in asked else "small" for i in range(ROWS)]
    logits = [said["large" if i in asked else "small"].logits[i] for i in range(ROWS)]
    ids, table = answers(config)
    assert ids == [c.id for c in conversations]
    assert np.abs(table - softmax(np.array(logits), axis=1)).max() < 1e-5
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"test.csv", "submission.csv", "submission.judges.csv"}


def test_a_row_whose_orders_a_kill_parted_is_the_judge_s_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"small": ["1ab", "1ba", "2ab", "2ba"], "large": ["1ab", "2ab", "2ba"]}

    def read(parts: Path) -> pl.DataFrame:
        rows = [{"id": row[0], "order": row[1:], "logits": [0.0] * 3} for row in told[parts.name]]
        return pl.DataFrame(rows, schema_overrides={"logits": JUDGED["logits"]}).select(
            pl.col(name) if name in ("id", "order", "logits") else pl.lit(None, kind).alias(name)
            for name, kind in JUDGED.items()
        )

    monkeypatch.setattr(cascade, "read_scores", read)
    words = cascade.last_words([Judge(name, tmp_path, tmp_path / name, (ORDERS,)) for name in told])
    assert sorted(words.select("id", "order", "turn").rows()) == [
        *(("1", "ab", 0), ("1", "ba", 0), ("2", "ab", 1), ("2", "ba", 1))
    ]


def test_three_judges_are_asked_in_turn(
    configure: Configure, conversations: list[Conversation], said: dict[str, Opinions], exports: dict[str, Path]
) -> None:
    config = configure(*HALF, f"predict.cascade=[small,{exports['large']},huge]")
    predict.main(config)
    second = going_on(said["small"], said["large"], by_prompt(conversations), 0.5, 5)
    third = going_on(said["large"], said["huge"], [i for i in by_prompt(conversations) if i in second], 0.5, 5)
    assert len(third) == ROWS // 4
    names = ["huge" if i in third else str(exports["large"]) if i in second else "small" for i in range(ROWS)]
    assert judges_of(config) == names


def stop_at(config: Config, judge: str, pieces: int, monkeypatch: pytest.MonkeyPatch) -> dict[Path, bytes]:
    """Predict until a judge is asked for one more piece than so many; the parts that are there then."""
    score, asked = ShareJudge.score, 0

    def stopping(self: ShareJudge, conversations: Sequence[Conversation], orders: Sequence[Order]) -> None:
        nonlocal asked
        asked += self.judge.name == judge
        if asked > pieces:
            raise KeyboardInterrupt
        score(self, conversations, orders)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ShareJudge, "score", stopping)
        predict.main(config)
    return parts_of(config)


def parts_of(config: Config) -> dict[Path, bytes]:
    return {path: path.read_bytes() for turn in (0, 1) for path in part_files(store_of(parts_folder(config), turn))}


def assert_it_goes_on(config: Config, kept: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is `kept` is not judged again, and the end is that of a straight run."""
    at_the_end: dict[Path, bytes] = {}
    discard = run.discard

    def looked_at(parts: Path) -> None:
        at_the_end.update(parts_of(config))
        discard(parts)

    monkeypatch.setattr(run, "discard", looked_at)
    predict.main(config)
    assert kept and kept.items() < at_the_end.items()
    ended = judges_of(config), answers(config)[1]
    Path(str(config.output)).unlink()
    predict.main(config)
    assert judges_of(config) == ended[0] and np.abs(answers(config)[1] - ended[1]).max() < 1e-5
    assert not parts_folder(config).exists()


@pytest.mark.parametrize("pieces", [1, pytest.param(5, marks=pytest.mark.long)])
def test_stopped_in_the_pilot_or_later_it_ends_as_if_it_had_not_been(
    configure: Configure, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*HALF)
    assert_it_goes_on(config, stop_at(config, "large", pieces, monkeypatch), monkeypatch)


@pytest.mark.long
def test_killed_while_the_large_judge_works_it_ends_as_if_it_had_not_been(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*HALF)
    with monkeypatch.context() as patched:
        second = "tests.deploy.predicting.predictions.parts_folder"
        patched.setattr(second, lambda of: store_of(parts_folder(of), 1))
        assert killed_after(config, 3) == -signal.SIGKILL
    assert_it_goes_on(config, parts_of(config), monkeypatch)


def test_where_the_time_does_not_last_for_the_pilot_the_small_judge_has_all(
    configure: Configure, said: dict[str, Opinions], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(judging, "open_scorer", lambda *a: opened.append(a[0].name) or open_scorer(*a))
    config = configure("predict.minutes=0.0001", "predict.pilot=16")
    with caplog.at_level(logging.INFO):
        predict.main(config)
    assert opened == ["small"]
    assert judges_of(config) == ["small"] * ROWS
    assert np.abs(answers(config)[1] - softmax(said["small"].logits, axis=1)).max() < 1e-5
    assert "does not last for large to start and to judge a pilot of 10 rows: what was said before" in caplog.text


class Clock:
    """A time that passes by rows: a second for each that the small judge reads, and six for the large one.

    `opening`: how long an engine takes to start.
    """

    def __init__(self, opening: float = 0.0) -> None:
        self.began = self.now = 1e9
        self.opening, self.opened = opening, list[str]()

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, score = Clock(), ShareJudge.score

    def slow(self: ShareJudge, conversations: Sequence[Conversation], orders: Sequence[Order]) -> None:
        before = len(self.there)
        score(self, conversations, orders)
        rows = (len(self.there) - before) / len(orders)
        clock.now += {"small": 1.0, "large": 6.0}[self.judge.name] * rows

    def opening(*told: Any) -> Any:
        clock.opened.append(told[0].name)
        clock.now += clock.opening
        return open_scorer(*told)

    monkeypatch.setattr(ShareJudge, "score", slow)
    monkeypatch.setattr(judging, "open_scorer", opening)
    for place in (judging, budget, run):
        monkeypatch.setattr(place, "time", clock)
    return clock


def test_no_piece_is_begun_that_ends_after_the_budget(configure: Configure, clock: Clock) -> None:
    config = configure(f"predict.minutes={(ROWS + 6 * 21) / 60}", "predict.pilot=16")
    predict.main(config)
    by_large = judges_of(config).count("large")
    spent = clock.now - clock.began - ROWS
    assert spent == 6 * by_large and 6 * 14 <= spent <= 6 * 21, "all that whole pieces could use, and not more"


def test_a_budget_holds_where_the_first_judge_was_done_before(
    configure: Configure, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure("predict.minutes=60", "predict.pilot=16")
    stop_at(config, "large", 0, monkeypatch)
    began = clock.now
    clock.opened.clear()
    predict.main(configure("predict.minutes=0.1", "predict.pilot=16"))  # six seconds, and ten rows take ten at least
    assert not clock.opened and clock.now == began and judges_of(config) == ["small"] * ROWS
    assert "the time budget does not last for large to start and to judge a pilot of 10 rows" in caplog.text
    assert not parts_folder(config).exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_the_opening_of_the_next_engine_is_in_the_budget(
    configure: Configure, clock: Clock, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.opening = 50.0
    more = 30.0  # enough for a pilot of ten rows at a second each, but for the opening
    config = configure(f"predict.minutes={(50 + ROWS + more) / 60}", "predict.pilot=16")
    if stopped:
        stop_at(configure("predict.minutes=60", "predict.pilot=16"), "large", 0, monkeypatch)
        config = configure(f"predict.minutes={more / 60}", "predict.pilot=16")
    clock.opened.clear()
    predict.main(config)
    assert clock.opened == ([] if stopped else ["small"]) and judges_of(config) == ["small"] * ROWS


@pytest.mark.usefixtures("clock")
def test_a_second_order_does_not_open_an_engine_without_the_time_for_it(
    configure: Configure, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.opening = 50.0
    alone = ("predict.cascade=[]", f"predict.model={configure().root}/exports/default/small", "predict.pilot=16")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "write_answers", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        predict.main(configure(*alone, "predict.second_opinions=0"))
    clock.opened.clear()
    predict.main(configure(*alone, f"predict.minutes={49 / 60}"))
    assert not clock.opened


def test_a_budget_lasts_as_long_as_the_speed_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    assert Budget(None, Speed(9, 9)).lasts_for(1e9) and not Budget(clock.now - 1, Speed()).lasts_for(0)
    of = Budget(clock.now + 10, Speed(4, 0.1), speed_note(tmp_path, 0))
    assert of.lasts_for(99) and not of.lasts_for(101) and of.lasts_for(60, opening=True)
    assert not of.lasts_for(61, opening=True)
    began, clock.now = clock.now, clock.now + 2
    of.spend(began, 100)
    assert of.speed == Speed(4, 0.02) and of.lasts_for(400) and not of.lasts_for(401), "what was seen counts"
    assert noted_speed(tmp_path) == of.speed and noted_speed(tmp_path / "none") is None
    Budget(None, Speed(1, 0.5), speed_note(tmp_path, 1)).opened(clock.now - 7)
    assert noted_speed(tmp_path) == Speed(7, 0.5), "the slowest process's"
    assert of.speed.of_larger(3) == Speed(4, 0.06)
    assert until(clock.now + 12, 3) == clock.now + 4 and until(clock.now - 1, 3) == clock.now - 1


def test_in_a_cascade_no_other_judge_is_looked_for(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, find = [], predict.judge_folder
    monkeypatch.setattr(predict, "judge_folder", lambda of, chosen: asked.append(chosen) or find(of, chosen))
    monkeypatch.setattr(run, "write_predictions", lambda *_: None)
    predict.main(configure())
    assert [Path(str(chosen)).name for chosen in asked] == ["small", "large"]


def test_without_a_budget_the_last_judge_has_all_and_it_is_told(
    configure: Configure, said: dict[str, Opinions], caplog: pytest.LogCaptureFixture
) -> None:
    config = configure("predict.pilot=0")
    predict.main(config)
    assert "without a budget: large judges every row" in caplog.text
    assert np.abs(answers(config)[1] - softmax(said["large"].logits, axis=1)).max() < 1e-5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["predict.cascade=[small]"], r"predict.cascade=\['small'\]: a cascade has two judges or more"),
        (["predict.cascade=[small,small]"], "small is there twice; give each judge once"),
        (
            ["predict.cascade=[small,none]"],
            r"there is no export none, neither .*default/none nor a folder of that name",
        ),
        (["predict.model=small"], "predict.model=small names one judge and predict.cascade several"),
        (["scorer@scorers.exported=server", "scorers.exported.urls=[http://x]"], "a server answers for one model only"),
        (["predict.second_opinions=0.5", "predict.pilot=1"], None),  # the file alone is too small for a pilot
    ],
)
def test_cascades_that_make_no_sense_are_refused(
    configure: Configure, overrides: list[str], message: str | None
) -> None:
    if message is None:
        predict.main(configure(*overrides))
        return
    with pytest.raises(UserError, match=message):
        predict.main(configure(*overrides))


def test_a_pilot_that_is_too_small_for_the_rows_is_refused(
    configure: Configure, conversations: list[Conversation], tmp_path: Path
) -> None:
    many = [replace(c, id=f"{time}-{c.id}") for time in range(4) for c in conversations]
    file = write_csv(tmp_path / "many.csv", [cells(c) for c in many])
    message = "predict.pilot=15: too few to tell which of 160 rows gain most by a second opinion; give 16 or more"
    for share in ("predict.second_opinions=0.5", "predict.minutes=60"):
        with pytest.raises(UserError, match=message):
            predict.main(configure(f"input={file}", "predict.pilot=15", share))


def test_copies_of_a_judge_and_judges_of_other_labels_are_refused(
    configure: Configure, exports: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(exports["small"], tmp_path / "copy")
    with pytest.raises(UserError, match="copy is a copy of a judge before it"):
        predict.main(configure(f"predict.cascade=[small,{copy}]"))
    other = shutil.copytree(exports["large"], tmp_path / "other")
    manifest = json.loads((other / MANIFEST).read_text())
    write_json(other / MANIFEST, {**manifest, "extra": {**manifest["extra"], "labels": ["a", "b"]}})
    with pytest.raises(UserError, match=r"small knows the labels a, b, tie and .*other a, b: take judges of data with"):
        predict.main(configure(f"predict.cascade=[small,{other}]"))
    assert not parts_folder(configure()).exists()


def test_a_started_cascade_is_not_gone_on_with_by_other_judges(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*HALF)
    assert stop_at(config, "large", 0, monkeypatch)
    with pytest.raises(UserError, match=r"model: there .* now "):
        predict.main(configure(*HALF, "predict.cascade=[small,huge]"))
    assert parts_of(config)
    predict.main(configure(*HALF, "predict.cascade=[large,huge]", "overwrite=true"))
    assert not parts_folder(config).exists()


@pytest.mark.long
def test_two_engines_of_vllm_one_after_another(configure: Configure, said: dict[str, Opinions]) -> None:
    config = configure("scorer@scorers.exported=vllm", "predict.rows_per_part=8", *HALF)
    predict.main(config)
    logits = [said[str(judge)].logits[i] for i, judge in enumerate(judges_of(config))]
    assert np.abs(answers(config)[1] - softmax(np.array(logits), axis=1)).max() < 1e-3


@pytest.mark.long
def test_from_the_command_line_with_two_processes(
    root: Path, exports: dict[str, Path], conversations: list[Conversation], tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "test.csv", [cells(c) for c in conversations])
    arguments = [f"input={file}", f"output={tmp_path}/out.csv", f"paths.root={root}", *FAST, "predict.devices=2"]
    printed = succeeds("distill.predict", *arguments, "predict.cascade=[small,large]", "predict.second_opinions=0.4")
    assert "judged last: 24 by small, 16 by large" in printed
    rows = tmp_path / "responses.jsonl"
    rows.write_text(json.dumps({"prompt": "q", "response": "r"}) + "\n")
    single = [f"input={rows}", f"output={tmp_path}/ranks.csv", f"paths.root={root}", "predict.cascade=[small,large]"]
    assert "ranked by one judge" in refuses("distill.predict", *single)
    assert "a cascade has two judges" in refuses("distill.predict", *single[:3], "predict.cascade=[small]")
