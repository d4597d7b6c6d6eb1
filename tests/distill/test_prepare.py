"""`python -m distill.prepare`: what it writes, when it has nothing to do, and how it refuses."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from core.artefacts.manifest import read_manifest
from core.config import from_mapping
from core.data.public import VARIABLE, public_folder
from core.data.sources import scores_are_log_odds
from core.data.table import SCHEMA, load_conversations
from core.errors import UserError
from distill.command_line import CONF
from distill.config import Config
from distill.prepare import main
from tests.composing import plain
from tests.layout_files import write as write_layout

ROOT = Path(CONF).parent
HUMAN = ROOT / public_folder()


def config(root: Path, *overrides: str) -> Config:
    values = plain(f"paths.root={root}", *overrides)
    return from_mapping(Config, values | {"run": values["name"]})


def write_rows(path: Path, count: int, **changes: str) -> Path:
    """`count` good rows, then one with `changes`."""
    names = ("id", "model_a", "model_b", "prompt", "response_a", "response_b")
    rows = [dict(zip(names, (str(i), "x", "y", f'["{i}?"]', '["Yes"]', '["No"]'), strict=True)) for i in range(count)]
    rows += [rows[-1] | {"id": "bad"} | changes] if changes else []
    winners = [{"winner_model_a": i % 2, "winner_model_b": 1 - i % 2, "winner_tie": 0} for i in range(len(rows))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *winners[0]])
        writer.writeheader()
        writer.writerows(row | winner for row, winner in zip(rows, winners, strict=True))
    return path


def test_prepare_writes_conversations_rejected_rows_and_a_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "train.csv", 20, prompt="not JSON")
    main(config(tmp_path, f"data.files=[{path}]"))  # one row of 21: just below a twentieth
    folder = tmp_path / "data" / "lmsys"
    printed = capsys.readouterr().out
    assert "rejected from train: 1 x prompt is not JSON" in printed
    assert str(folder) in printed
    assert len(load_conversations(folder)) == 20
    assert pl.read_parquet(folder / "conversations.parquet").schema == SCHEMA
    assert pl.read_parquet(folder / "rejected.parquet").to_dicts() == [
        {
            "source": "train",
            "line": 22,
            "id": "bad",
            "reason": "prompt is not JSON: 'not JSON' (Expecting value: line 1 column 1 (char 0))",
        }
    ]
    manifest = read_manifest(folder, "prepare")
    assert manifest.rows == {"read": 21, "kept": 20, "duplicates": 0, "rejected": 1}
    assert manifest.config["inputs"]["train"]["bytes"] == path.stat().st_size


def test_the_manifest_tells_whether_scores_are_log_odds(tmp_path: Path) -> None:
    path = write_layout("scored", tmp_path)
    main(config(tmp_path, f"data.files=[{path}]"))
    assert scores_are_log_odds(tmp_path / "data" / "lmsys")
    main(config(tmp_path, f"data.files=[{write_rows(tmp_path / 'train.csv', 20)}]", "overwrite=true"))
    assert not scores_are_log_odds(tmp_path / "data" / "lmsys")


def test_near_duplicates_share_a_fold_and_the_summary_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "train.csv", 10, prompt='["How do I bake good bread?"]')
    path.write_text(path.read_text().replace('""0?""', '""Hello, how do I bake good bread?""'))
    command = f"data.files=[{path}]"
    main(config(tmp_path, command))
    table = pl.read_parquet(tmp_path / "data/lmsys/conversations.parquet")
    assert table["group"][0] == table["group"][-1] and table["fold"][0] == table["fold"][-1]
    said = "near-duplicates: 2 first prompts joined into 1 groups, the largest of 2; for example"
    assert f"{said} 'Hello, how do I bake good bread?' and 'How do I bake good bread?'" in capsys.readouterr().out
    main(config(tmp_path, command, "data.near_duplicates=null", "overwrite=true"))
    assert pl.read_parquet(tmp_path / "data/lmsys/conversations.parquet")["group"].n_unique() == len(table)
    assert "near-duplicates" not in capsys.readouterr().out


def test_a_finished_artefact_is_kept_and_changed_input_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "train.csv", 10)
    configured = config(tmp_path, f"data.files=[{path}]")
    main(configured)
    written = (tmp_path / "data/lmsys/manifest.json").read_bytes()
    capsys.readouterr()
    main(configured)
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "data/lmsys/manifest.json").read_bytes() == written
    with pytest.raises(ValueError, match=r"limit: there None, now 8"):
        main(config(tmp_path, f"data.files=[{path}]", "limit=8"))
    write_rows(path, 12)
    with pytest.raises(ValueError, match=r"inputs\.train\.sha256"):
        main(configured)
    main(config(tmp_path, f"data.files=[{path}]", "limit=8", "overwrite=true"))
    assert len(load_conversations(tmp_path / "data/lmsys")) == 8


def test_a_source_that_is_mostly_unusable_is_refused_with_the_commonest_reason(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "good.csv", 40)
    bad = write_rows(tmp_path / "bad.csv", 8, prompt="not JSON")
    bad.write_text(bad.read_text() + "9,too,few\n")
    configured = config(tmp_path, f"data.files=[{good},{bad}]")
    message = (
        r"bad: 2 of 10 rows cannot be used, data.max_rejected=0.05: 1 x prompt is not JSON, 1 x not 9 fields, such as"
    )
    with pytest.raises(UserError, match=message):
        main(configured)
    folder = tmp_path / "data" / "lmsys"
    assert pl.read_parquet(folder / "rejected.parquet")["source"].to_list() == ["bad", "bad"]
    assert not (folder / "manifest.json").exists()
    main(config(tmp_path, f"data.files=[{good},{bad}]", "data.max_rejected=0.2"))
    main(configured)  # finished: what let the rows pass is no part of what was made


@pytest.mark.parametrize("name", ["conversations.parquet", "rejected.parquet"])
def test_a_damaged_artefact_is_not_called_finished_and_not_read(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configured = config(tmp_path, f"data.files=[{write_rows(tmp_path / 'train.csv', 10)}]")
    main(configured)
    folder = tmp_path / "data" / "lmsys"
    (folder / name).write_bytes((folder / name).read_bytes()[:300])
    for opened in (lambda: main(configured), lambda: load_conversations(folder)):
        with pytest.raises(
            ValueError, match=rf"lmsys has changed since its manifest was written \({name} has 300 bytes"
        ):
            opened()
    assert "is finished" not in capsys.readouterr().out
    main(config(tmp_path, f"data.files=[{tmp_path / 'train.csv'}]", "overwrite=true"))
    assert len(load_conversations(folder)) == 10


def test_an_unfinished_artefact_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "lmsys"
    path = write_rows(tmp_path / "train.csv", 1, prompt="[]")
    told = r"1 conversations .* cannot be split.*; 1 rows were rejected \(1 x unequal turns\), see .*rejected\.parquet"
    with pytest.raises(ValueError, match=told):
        main(config(tmp_path, f"data.files=[{path}]", "data.max_rejected=0.5"))
    assert pl.read_parquet(folder / "rejected.parquet")["reason"][0].startswith("unequal turns")
    (folder / "law.parquet").touch()
    main(config(tmp_path, f"data.files=[{write_rows(path, 10)}]"))
    assert {p.name for p in folder.iterdir()} == {"conversations.parquet", "rejected.parquet", "manifest.json"}


def test_a_simulated_arena_keeps_its_law(tmp_path: Path) -> None:
    main(config(tmp_path, "data=arena_sim", "data.simulate.conversations=60", "limit=50"))
    folder = tmp_path / "data" / "arena_sim"
    assert pl.read_parquet(folder / "law.parquet")["id"].to_list() == [c.id for c in load_conversations(folder)]
    assert read_manifest(folder).rows["kept"] == 50


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.files=[{path}]", "data.hub=nobody/nothing"], "set exactly one of data.files, data.hub, data.simulate"),
        (["data.files=null"], "now none is set"),
        (["data.files=[{path},nowhere/*.csv]"], "'nowhere/*.csv' matches no file"),
        (["data.files=[{path}]", "data.shuffle_sides=[other]"], "choose from ['train']"),
        (["data.files=[{path}]", "data.folds.split=blackpearl"], "set data.test_share=0"),
        (
            ["data.files=[{path}]", "data.folds.split=blackpearl", "data.test_share=0"],
            "the blackpearl split has count=5 and seed=2025",
        ),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    path = write_rows(tmp_path / "train.csv", 20)
    with pytest.raises(ValueError) as caught:
        main(config(tmp_path, *(override.format(path=path) for override in overrides)))
    assert said in str(caught.value)


def test_public_sets_that_are_not_there_are_told_where_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "public"))
    for choice in ("data=human", "+exp=human"):
        with pytest.raises(UserError, match=r"matches no file.*`python -m proof\.sources` says where to get"):
            main(config(tmp_path, choice))
    with pytest.raises(UserError) as other:
        main(config(tmp_path, "data.files=[train.csv]"))
    assert "proof" not in str(other.value)


def test_an_input_in_the_folder_that_is_written_is_kept(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.csv", 10)
    main(config(tmp_path, f"data.files=[{path}]"))
    inside = path.rename(tmp_path / "data" / "lmsys" / "train.csv")
    with pytest.raises(UserError, match=f"{inside} is read, and overwrite=true would remove it"):
        main(config(tmp_path, f"data.files=[{inside}]", "overwrite=true"))
    assert inside.exists()


def test_a_file_that_lies_where_the_table_goes_is_kept(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.csv", 10)
    mine = tmp_path / "data" / "lmsys" / "conversations.parquet"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    for overwrite in ("false", "true"):
        with pytest.raises(UserError, match="holds files that this command did not write, such as 'conversations"):
            main(config(tmp_path, f"data.files=[{path}]", f"overwrite={overwrite}"))
    assert mine.read_text() == "precious"


def test_a_file_whose_name_is_not_utf8_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / os.fsdecode(b"caf\xe9.csv"), 10)
    with pytest.raises(UserError, match=r"caf\\udce9\.csv': the name is not UTF-8: rename the file"):
        main(config(tmp_path, f"data.files=['{tmp_path}/caf*.csv']"))


def test_one_prompt_alone_is_too_little_to_split(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.csv", 1)
    with pytest.raises(UserError, match="cannot be split into grouped folds, which takes two: read more rows"):
        main(config(tmp_path, f"data.files=[{path}]"))


def test_the_door_exits_with_2_and_one_message(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id,question\n1,Hi\n")
    command = [
        sys.executable,
        "-m",
        "distill.prepare",
        f"data.files=[{tmp_path / 'train.csv'}]",
        f"paths.root={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the data cannot be read:\n")
    assert "no layout has these columns: ['id', 'question']" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(
    len([*HUMAN.glob("*/*.csv")]) < 5, reason=f"not all five sets are in {HUMAN}: python -m proof.sources"
)
def test_the_human_sets_are_read_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    main(config(tmp_path, "data=human"))
    folder = tmp_path / "data" / "human"
    assert read_manifest(folder).rows == {"read": 7388, "kept": 7387, "duplicates": 1, "rejected": 0}
    table = pl.read_parquet(folder / "conversations.parquet")
    assert table["source"].n_unique() == 5
    assert table.group_by("group").agg(pl.col("fold").n_unique())["fold"].max() == 1
    votes = dict(table.group_by("source").agg(pl.col("votes").list.sum().max()).iter_rows())
    assert votes["llmfao"] == 5
    assert votes["pandalm_testset"] == 3
    assert json.loads((folder / "manifest.json").read_text())["config"]["inputs"].keys() == {*table["source"]}
