"""A data set of the hub is read like a local file of the same content, cell for cell."""

import datetime
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from datasets import Dataset
from datasets.data_files import DataFilesDict
from datasets.packaged_modules.csv.csv import CsvConfig

from core.data.files.hub import local_folder, open_hub
from core.data.files.opening import open_sources
from core.data.files.rows import Source
from tests.core.data.files.test_reading import packed, table, written
from tests.core.data.test_readers import data_config

TEXTS = [
    {"id": "007", "prompt": "1.50", "number": "12345678901234567890", "date": "2024-01-02", "gap": ""},
    {"id": "1000.0", "prompt": "null", "number": "1e3", "date": "2024-01-03T10:00:00Z", "gap": "NaN"},
]
TYPED: list[dict[str, Any]] = [
    {"id": 2**62 + i, "gap": gap, "date": "2024-01-02", "none": None, "turns": [{"role": "user", "content": gap}]}
    for i, gap in enumerate((None, 1.0, 2.5))
]
DATED = [row | {"day": datetime.date(2024, 1, 2), "time": datetime.datetime(2024, 1, 2, 3)} for row in TYPED]
CARD = """---
configs:
- config_name: first
  default: true
  data_files:
  - split: raw
    path: raw.jsonl.gz
  - split: filtered
    path: kept/filtered.jsonl.zst
- config_name: second
  data_files: "*.csv"
---
"""


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def hub(name: Path | str) -> Source:
    problems: list[str] = []
    source = open_hub(str(name), problems)
    assert not problems
    assert source
    return source


def problem_of(name: Path | str) -> str:
    problems: list[str] = []
    assert open_hub(str(name), problems) is None
    (problem,) = problems
    return problem


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("table.csv", TEXTS),
        ("table.csv.gz", TEXTS),
        ("table.tsv", TEXTS),
        ("table.jsonl", TYPED),
        ("table.jsonl.zst", TEXTS),
        ("table.ndjson", TEXTS),
        ("table.json", TYPED),
        ("table.json.gz", TYPED),
        ("table.parquet", DATED),
        ("data/train-00000-of-00001.parquet", DATED),
    ],
)
def test_a_folder_is_read_like_its_file(tmp_path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "arena" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(packed(written("." + name.split(".")[1], rows), path.suffix))
    local, found = table(path), hub(tmp_path / "arena")
    assert (found.name, found.where) == ("arena", f"data.hub={str(tmp_path / 'arena')!r}")
    assert [*found.rows()] == [*local.rows()]
    assert [row.cells for row in found.rows()] == rows
    assert (found.columns, found.identity) == (local.columns, local.identity)


def test_shards_are_read_in_order_and_the_content_alone_identifies_them(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "data").mkdir(parents=True)
        for i in range(3):
            (tmp_path / folder / "data" / f"train-{i:05}-of-00003.parquet").write_bytes(
                written(".parquet", TYPED[i : i + 1])
            )
        (tmp_path / folder / "data" / "test-00000-of-00001.parquet").write_bytes(written(".parquet", TEXTS))
    one, two = hub(tmp_path / "one"), hub(tmp_path / "two")
    local = table(*sorted((tmp_path / "one" / "data").glob("train-*")))
    assert [*one.rows()] == [*local.rows()]
    assert one.identity == two.identity == local.identity
    assert [row.cells["id"] for row in hub(f"{tmp_path / 'one'}:test").rows()] == ["007", "1000.0"]


def test_a_card_tells_the_splits_and_the_user_which(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "arena"
    (folder / "kept").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "raw.jsonl.gz").write_bytes(packed(written(".jsonl", TEXTS), ".gz"))
    (folder / "kept" / "filtered.jsonl.zst").write_bytes(packed(written(".jsonl", TEXTS[1:]), ".zst"))
    (folder / "other.csv").write_bytes(written(".csv", TEXTS))
    assert f"there is no split 'train': name one of ['raw', 'filtered'], as in data.hub={folder}:raw" in problem_of(
        folder
    )
    with caplog.at_level(logging.INFO):
        assert [row.cells for row in hub(f"{folder}:filtered").rows()] == TEXTS[1:]
    assert f"data.hub={folder}: of the splits ['raw', 'filtered'], filtered is read" in caplog.messages
    assert [row.cells for row in hub(f"{folder}:second/train").rows()] == TEXTS
    (folder / "README.md").write_text(CARD.replace("  default: true\n", ""))
    for name in (folder, f"{folder}:third/train"):
        told = f"name one of the configurations ['first', 'second'] and its split, as in data.hub={folder}:first/train"
        assert told in problem_of(name)
    assert local_folder(f"{folder}:second/train") == local_folder(str(folder)) == folder
    assert local_folder("nobody/nothing:train") is None


def test_what_datasets_alone_reads_comes_through_it(tmp_path: Path) -> None:
    (tmp_path / "arrow").mkdir()
    pl.DataFrame(TYPED).write_ipc_stream(tmp_path / "arrow" / "train.arrow")
    found = hub(tmp_path / "arrow")
    assert [row.cells for row in found.rows()] == TYPED
    shutil.copytree(tmp_path / "arrow", tmp_path / "copied" / "arrow")
    assert hub(tmp_path / "copied" / "arrow").identity == found.identity


@pytest.mark.parametrize(
    "files",
    [
        ["https://example.org/arena.csv"],
        ["hf://datasets/nobody/arena@main/a.csv", "hf://datasets/nobody/other@main/b.csv"],
    ],
)
def test_files_that_lie_elsewhere_come_through_datasets(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A card may name files of several sets, and any address."""
    config = CsvConfig(data_files=DataFilesDict({"train": files}))
    builder = SimpleNamespace(config=config, info=SimpleNamespace(splits=None))
    monkeypatch.setattr("datasets.load_dataset_builder", lambda name, config: builder)
    monkeypatch.setattr("datasets.load_dataset", lambda name, config, split: Dataset.from_list(TEXTS))
    assert [row.cells for row in hub("nobody/arena").rows()] == TEXTS


def test_a_set_of_the_hub_is_downloaded_and_read_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    files = {
        "train": [
            "hf://datasets/nobody/arena@refs%2Fconvert/data/a[1].csv",
            "hf://datasets/nobody/arena@refs%2Fconvert/b.csv",
        ]
    }
    builder = SimpleNamespace(config=CsvConfig(data_files=DataFilesDict(files)), info=SimpleNamespace(splits=None))
    monkeypatch.setattr("datasets.load_dataset_builder", lambda name, config: builder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / "data").mkdir()
    for name, rows in {"data/a[1].csv": TEXTS[:1], "b.csv": TEXTS[1:]}.items():
        (tmp_path / name).write_bytes(written(".csv", rows))
    found = hub("nobody/arena")
    assert found.name == "arena"
    assert [row.cells for row in found.rows()] == TEXTS
    assert (asked["repo"], asked["revision"], asked["repo_type"]) == ("nobody/arena", "refs/convert", "dataset")
    assert asked["allow_patterns"] == ["data/a[[]1].csv", "b.csv"]


def test_a_hub_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    assert "data.hub='nobody/nothing': " in problem_of("nobody/nothing")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in problem_of(tmp_path / "empty")
    (tmp_path / "arena[1]").mkdir()
    assert "datasets takes the folder's path for a pattern: rename it" in problem_of(tmp_path / "arena[1]")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "train.jsonl.gz").write_bytes(packed(written(".jsonl"), ".gz")[:-5])
    assert "train.jsonl.gz is damaged" in problem_of(tmp_path / "cut")


def test_a_file_may_be_named_as_a_hub_too(tmp_path: Path) -> None:
    path = tmp_path / "arena.jsonl.gz"
    rows = [{"id": "007", "prompt": ["?"], "response_a": ["Yes"], "response_b": ["No"]}]
    path.write_bytes(packed(json.dumps(rows[0]).encode(), ".gz"))
    ((named,), (local,)) = open_sources(data_config(hub=str(path)), []), open_sources(data_config(path), [])
    assert [*named.rows()] == [*local.rows()]
    assert (named.name, named.identity) == (local.name, local.identity) == ("arena", local.identity)
