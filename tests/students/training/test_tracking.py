"""Trackers show what history.parquet and samples.parquet hold: each step once, also where a run was killed."""

import html
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from core.artefacts.manifest import read_manifest
from core.records import LABELS, Conversation
from distill import prepare, student
from distill.config import Config
from distill.training_run import run_folder, training_run
from students.training.loop import HISTORY, Trainer
from students.training.samples import markdown, sample_table, samples_schema, shortened
from students.training.tracking import open_tracker
from tests.composing import configured
from tests.grids import grid
from tests.running import own_process
from tests.students.training.wandb_server import WandbServer

pytestmark = pytest.mark.timeout(300)
Configure = Callable[..., Config]
WANDB = Path(sys.executable).with_name("wandb")
STEPS, CHECKPOINT, KILLED_AT = 10, 6, 8
HOSTILE = "<script>alert(1)</script> | a | ![x](http://x/y.png)\n\n# **b** `c` &amp; [d](javascript:e) ünï"


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Configure:
    root = tmp_path_factory.mktemp("artifacts")
    base = ["+exp=smoke", f"paths.root={root}", f"model.base={tiny_llama}", "model.layers=null", "loss=votes"]
    base += ["train.epochs=2", "train.validate_every=3", "engine.checkpoint_minutes=1000", "tracker.samples=6"]
    prepare.main(configured(*base, "data.test_share=0"))

    def build(run: str, *overrides: str) -> Config:
        return replace(configured(*base, *overrides), run=run)

    return build


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fresh_wandb() -> Iterator[None]:
    """Wandb reads the environment once a process."""
    wandb.teardown()
    yield
    wandb.teardown()


def history(config: Config) -> list[dict[str, Any]]:
    records = pl.read_parquet(run_folder(config) / "history.parquet").to_dicts()
    return [{name: value for name, value in record.items() if value is not None} for record in records]


def samples(config: Config) -> pl.DataFrame:
    return pl.read_parquet(run_folder(config) / "samples.parquet")


def train_until_killed(config: Config, environment: dict[str, str]) -> None:
    """In a process of its own: no chance to tidy up."""
    os.environ.update(environment)
    take_step = Trainer.take_step

    def killed(self: Trainer, step: list[int], epoch: int) -> dict[str, Any]:
        if self.state.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(self, step, epoch)

    Trainer.take_step = killed  # type: ignore[method-assign]
    student.main(config)


def kill(config: Config, **environment: str) -> None:
    process = own_process(train_until_killed, config, environment)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not config.tracker.samples or samples(config)["step"].max() == CHECKPOINT


def wandb_folders(config: Config) -> list[Path]:
    return sorted((run_folder(config) / "wandb").glob("offline-run-*"))


def wandb_records(folder: Path) -> list[dict[str, Any]]:
    """What an offline run recorded, read by wandb itself."""
    command = [WANDB, "leet", "inspect", "--json", folder]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in wandb_records(folder) if record["type"] == "history"]


def same_curve(shown: list[dict[str, Any]], config: Config) -> None:
    expected = history(config)
    assert [row["_step"] for row in shown] == [row["step"] for row in shown] == [row["step"] for row in expected]
    assert [{name: row[name] for name in row if name in HISTORY} for row in shown] == expected


@pytest.mark.long
def test_a_killed_wandb_run_goes_on_as_one_run_with_each_step_once(configure: Configure) -> None:
    config = configure("wandb", "tracker=wandb")
    kill(config)
    (before,) = wandb_folders(config)
    student.main(config)
    (folder,) = wandb_folders(config)
    assert folder != before and folder.name.rsplit("-")[-1] == before.name.rsplit("-")[-1]
    same_curve(wandb_history(folder), config)
    with WandbServer() as server:
        outside = {name: value for name, value in os.environ.items() if "WANDB" not in name}  # no service of ours
        environment = outside | {"WANDB_API_KEY": 40 * "0", "WANDB_BASE_URL": server.url}
        subprocess.run([WANDB, "sync", "--yes", folder], cwd=folder, env=environment, check=True, timeout=100)
    same_curve(server.lines, config)

    records, home = wandb_records(folder), run_folder(config)
    run = next(record["run"] for record in records if record["type"] == "run")
    assert run["config"]["update"]["train"]["epochs"] == 2 and run["resume"] and run["job_type"] == "student"
    updates: dict[str, Any] = {}
    for record in records:
        updates |= record.get("config", {}).get("update", {})
    assert updates["manifest"]["parents"] == read_manifest(home).parents and "config" not in updates["manifest"]
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    metrics = json.loads((home / "metrics.json").read_text())
    assert summary["final"] == metrics
    assert (folder / "files" / "manifest.json").read_text() == (home / "manifest.json").read_text()

    tables = sorted((folder / "files" / "media" / "table").glob("samples_*"), key=lambda p: int(p.name.split("_")[1]))
    shown = [json.loads(path.read_text()) for path in tables]
    assert all(table["columns"] == list(samples_schema()) for table in shown)
    assert [row for table in shown for row in table["data"]] == [list(row) for row in samples(config).iter_rows()]


@pytest.mark.long
def test_what_a_server_has_seen_of_an_offline_run_is_kept(configure: Configure) -> None:
    config = configure("synced", "tracker=wandb")
    kill(config)
    (before,) = wandb_folders(config)
    next(before.glob("run-*.wandb")).with_suffix(".wandb.synced").touch()  # as `wandb sync` leaves it
    student.main(config)
    kept, folder = wandb_folders(config)
    assert kept == before
    assert [row["_step"] for row in wandb_history(folder)] == list(range(CHECKPOINT + 1, STEPS + 1))


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize("arrived", grid([0, CHECKPOINT - 2, KILLED_AT], short=[CHECKPOINT - 2]))
@pytest.mark.long
def test_an_online_run_tells_the_server_what_it_lacks(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arrived: int
) -> None:
    """However much reached it before the kill: less than the checkpoint has, or steps that are taken again."""
    config = configure(f"online-{arrived}", "tracker=wandb", "tracker.samples=0")  # the server has no tables
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    with WandbServer() as server:
        kill(config, WANDB_API_KEY=40 * "0", WANDB_BASE_URL=server.url)
    with WandbServer() as server:  # another one, out of the reach of what may be left of the killed run
        server.lines += [{"_step": step} for step in range(1, arrived + 1)]
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        student.main(config)
    assert [line["_step"] for line in server.lines] == list(range(1, STEPS + 1))
    expected = [{k: v for k, v in record.items() if k != "seconds"} for record in history(config)]
    told = [{k: v for k, v in line.items() if k in HISTORY and k != "seconds"} for line in server.lines]
    assert told[arrived:] == expected[arrived:]
    assert "less than the current step" not in "".join(capfd.readouterr())


def scalars(config: Config) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(run_folder(config) / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_a_killed_tensorboard_run_shows_each_step_once(configure: Configure) -> None:
    config = configure("tensorboard", "tracker=tensorboard")
    kill(config)
    assert [step for step, _ in scalars(config)["loss"]] == list(range(1, KILLED_AT + 1))
    student.main(config)
    shown, records = scalars(config), history(config)
    assert shown.keys() - {"gpu_memory_gb"} == {name for record in records for name in record} - {"step"}
    for tag, points in shown.items():
        expected = [(record["step"], float(record[tag])) for record in records if tag in record]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [v for _, v in points] == pytest.approx([v for _, v in expected], rel=1e-6)
    reader = EventAccumulator(str(run_folder(config) / "tensorboard"), size_guidance={"tensors": 0})
    reader.Reload()
    texts = {tag: reader.Tensors(tag) for tag in reader.Tags()["tensors"]}
    assert {"config/text_summary", "manifest.json/text_summary", "metrics.json/text_summary"} <= texts.keys()
    assert [event.step for event in texts["samples/text_summary"]] == samples(config)["step"].unique().sort().to_list()


def test_event_files_of_one_second_are_read_in_their_order(configure: Configure) -> None:
    config = configure("quick", "tracker=tensorboard")
    folder = run_folder(config)
    for _ in range(2):
        tracker = open_tracker(training_run(config), 0, [])
        tracker.start([])
    first, second = (path.name.split(".")[3] for path in sorted((folder / "tensorboard").iterdir()))
    assert int(first) < int(second)


def test_without_a_tracker_the_samples_are_there_and_nothing_else(configure: Configure) -> None:
    config, none = (
        configure("none", "tracker=none", "tracker.samples=1000"),
        configure("no-samples", "tracker.samples=0"),
    )
    student.main(config)
    student.main(none)
    assert not any((run_folder(c) / name).exists() for c in (config, none) for name in ("wandb", "tensorboard"))
    assert not (run_folder(none) / "samples.parquet").exists()
    means = samples(config).group_by("step", maintain_order=True).agg(pl.col("log_loss").mean())
    validated = {r["step"]: r["validation_log_loss"] for r in history(config) if "validation_log_loss" in r}
    assert dict(means.rows()) == pytest.approx(validated, abs=1e-6)


@pytest.mark.long
def test_trackers_change_nothing_that_is_learnt(configure: Configure) -> None:
    """The runs above, whole and killed: one curve."""
    configs = [configure(name, f"tracker={name}") for name in ("none", "wandb", "tensorboard")]
    for config in configs:
        student.main(config)  # where it is not finished
    curves = [[record["loss"] for record in history(config)] for config in configs]
    assert all(curve == curves[0] for curve in curves)


def arena(count: int, text: str = "text") -> list[Conversation]:
    votes = [[3.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    return [Conversation(f"c{i}", [text, "more"], ["a"], ["b"], votes=votes[i % 3]) for i in range(count)]


def test_samples_are_the_worst_and_the_same_random_ones() -> None:
    conversations = arena(40)
    tables = [sample_table(conversations, torch.randn(40, 3) * 3, step, 6, seed=0) for step in (1, 2)]
    random, worst = ([t.filter(pl.col("chosen") == how) for t in tables] for how in ("random", "worst"))
    assert [len(t) for t in (*random, *worst)] == [3, 3, 3, 3]
    assert set(random[0]["id"]) == set(random[1]["id"]) and set(worst[0]["id"]) != set(worst[1]["id"])
    assert all(table["id"].is_unique().all() and table["log_loss"].is_sorted(descending=True) for table in tables)

    logits = torch.randn(40, 3) * 3
    every = sample_table(conversations, logits, 1, 1000, seed=0)
    assert set(every["id"]) == {c.id for c in conversations}
    for row in every.to_dicts():
        i = int(row["id"][1:])
        p = [row[f"p_{label}"] for label in LABELS]
        votes = conversations[i].votes or []
        assert p == pytest.approx(logits[i].softmax(-1).tolist(), abs=1e-6)
        expected = -sum(v / sum(votes) * math.log(q) for v, q in zip(votes, p, strict=True))
        assert row["log_loss"] == pytest.approx(expected)
    table = sample_table(conversations, logits, 1, 6, seed=0)
    unseen = every.filter(~pl.col("id").is_in(table["id"].implode()))
    assert table.filter(pl.col("chosen") == "worst")["log_loss"].min() >= unseen["log_loss"].max()


def test_a_text_is_cut_in_its_middle() -> None:
    for characters in (1, 2, 5, 8):
        cut = shortened("0123456789", characters)
        assert len(cut) == characters and "…" in cut
        assert "0123456789".startswith(cut.split("…")[0]) and "0123456789".endswith(cut.split("…")[1])
    assert shortened("0123456789", 10) == "0123456789"


def test_markup_of_a_conversation_is_shown_and_not_obeyed() -> None:
    table = sample_table(arena(3, HOSTILE), torch.zeros(3, 3), 1, 3, seed=0)
    page = markdown_to_safe_html(markdown(table))
    rows = [re.findall(r"<td>(.*?)</td>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)][1:]
    assert len(rows) == 3 and all(len(row) == table.width for row in rows)
    column = table.columns.index("prompt")
    assert all(html.unescape(row[column]) == " ".join(f"{HOSTILE} more".split()) for row in rows)
    assert not re.search(r"<(script|img|a|h1|strong|code)\b", page)


def test_a_package_that_is_missing_is_named(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"tracker=wandb needs wandb: install it or set tracker=none"):
        open_tracker(replace(training_run(configure("x", "tracker=wandb")), folder=tmp_path), 0, [])


@pytest.mark.usefixtures("fresh_wandb")
def test_a_server_that_is_not_there_is_named(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    with pytest.raises(ValueError, match=r"(?s)wandb does not start \(.*WANDB_MODE=offline or tracker=none"):
        open_tracker(replace(training_run(configure("x", "tracker=wandb")), folder=tmp_path), 0, [])
