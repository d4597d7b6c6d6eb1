"""Whatever format rows come in, the same conversations come out, and what is wrong is said where it is wrong."""

import csv
import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.collecting import collect
from core.data.columns import WINNERS
from core.data.config import DataConfig, FoldsConfig
from core.data.files.opening import open_sources
from core.data.files.rows import Row, Source
from core.data.parsing import BadRow, parse
from core.data.table import from_frame
from core.errors import UserError
from core.records import Conversation

TEXTS = ("prompt", "response_a", "response_b")
A_WINS: dict[str, Any] = dict(zip(WINNERS, (1, 0, 0), strict=True))


def data_config(*files: Path | str, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "hub": None,
        "simulate": None,
        "ignore_columns": [],
        "test_share": 0.0,
        "max_rejected": 1.0,
        "shuffle_sides": [],
    }
    folds = FoldsConfig(count=2, split="grouped", seed=0)
    return DataConfig(
        near_duplicates=None, name="test", files=[str(file) for file in files], folds=folds, **{**values, **changes}
    )


def raw(
    identity: object = 7, prompt: str = '["Hi?"]', a: str = '["Yes"]', b: str = '["No"]', **more: Any
) -> dict[str, Any]:
    return {"id": identity, "model_a": "x", "model_b": "y", "prompt": prompt, "response_a": a, "response_b": b} | more


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows in the format that the suffix names."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(*files: Path, **changes: Any) -> tuple[list[Conversation], list[dict[str, Any]]]:
    table, rejected, tallies = collect(open_sources(data_config(*files, **changes)), None, [])
    assert sum(tally.read for tally in tallies) == len(table) + sum(t.duplicates for t in tallies) + len(rejected)
    return from_frame(table), rejected.to_dicts()


odd_letters = list('\ud83d\ude00\udfff\U0001f600/"\\\n,é')  # halves of surrogate pairs, and what formats escape
any_text = st.none() | st.text(max_size=8) | st.text(odd_letters, max_size=8)
turns = st.lists(st.tuples(any_text, any_text, any_text), min_size=1, max_size=3)


@given(turns, st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_format_gives_the_same_conversations(turns: list[tuple[str | None, ...]], ascii_only: bool) -> None:
    """Null turns become "", surrogate pairs one character, lone surrogates U+FFFD."""
    sides = [list(side) for side in zip(*turns, strict=True)]
    expected = [
        [(t or "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for t in s] for s in sides
    ]
    lists = dict(zip(TEXTS, sides, strict=True))
    escaped = ascii_only or any(
        s != e for side, clean in zip(sides, expected, strict=True) for s, e in zip(side, clean, strict=True)
    )
    cells = {name: json.dumps(side, ensure_ascii=escaped).replace("/", "\\/") for name, side in lists.items()}
    clean = dict(zip(TEXTS, expected, strict=True))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = raw(7, *cells.values(), **A_WINS)
        for file, content in {
            "train.csv": row,
            "train.parquet": row,
            "train.jsonl": row,
            "lists.jsonl": row | lists,
            "lists.parquet": row | clean,
        }.items():
            (source,) = open_sources(data_config(write(folder / file, [content])))
            (got,) = (parse(found, source) for found in source.rows())  # before any encoder drops an example
            assert (got.prompt, got.response_a, got.response_b) == tuple(expected), file
            assert (got.id, got.model_a, got.model_b, got.votes) == ("7", "x", "y", [1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "Hi?"}, "prompt is not JSON: 'Hi?'"),
        ({"prompt": ""}, "prompt is empty"),
        ({"response_a": "[" * 100_000}, "response_a is not JSON"),
        ({"response_a": '{"text": "Yes"}'}, "response_a is not a list: {'text'"),
        ({"response_b": '["No", 7]'}, "response_b holds an item that is neither text nor null: 7"),
        ({"response_b": '["No", "No!"]'}, "unequal turns: prompt 1, response_a 1, response_b 2"),
        ({"prompt": "[]", "response_a": "[]", "response_b": "[]"}, "no turns"),
        ({"id": " "}, "id is missing: ' '"),
        ({"winner_tie": "1"}, "winner columns are not one-hot: '1', 0, '1'"),
        ({"winner_model_a": "0"}, "winner columns are not one-hot"),
        ({"winner_model_a": ""}, "winner columns are not one-hot: ''"),
        ({"winner_model_a": "model_a"}, "winner columns are not one-hot: 'model_a'"),
        ({"votes_a": "-1", "votes_b": 2, "votes_tie": 0}, "votes are not counts: '-1', 2, 0"),
        ({"votes_a": "0", "votes_b": 0, "votes_tie": 0}, "votes are not counts"),
        ({"votes_a": "nan", "votes_b": 0, "votes_tie": 1}, "votes are not counts"),
        ({"votes": "123"}, "votes are not a text of the digits 1 (a), 2 (b), 0 (tie): '123'"),
        ({"votes": 221}, "votes are not a text of the digits"),
    ],
)
def test_a_bad_row_is_rejected_with_the_offending_value(changes: dict[str, Any], reason: str) -> None:
    cells = raw(winner_model_a="1", winner_model_b=0, winner_tie=0) | changes
    source = Source("test", list(cells), lambda: iter(()), {})
    with pytest.raises(BadRow) as caught:
        parse(Row(2, cells), source)
    assert str(caught.value).startswith(reason)
    assert len(str(caught.value)) < 300


def test_votes_of_several_people_win_over_the_majority(tmp_path: Path) -> None:
    counts: dict[str, Any] = {"votes_a": 1, "votes_b": 3, "votes_tie": 0}
    (counted,), _ = read(write(tmp_path / "counts.csv", [raw(**A_WINS, **counts)]))
    (ballots,), _ = read(write(tmp_path / "ballots.csv", [raw(**A_WINS, votes="2210")]))
    (ignored,), _ = read(tmp_path / "counts.csv", ignore_columns=[*counts])
    (unknown,), _ = read(write(tmp_path / "test.csv", [{name: raw()[name] for name in ("id", *TEXTS)}]))
    assert counted.votes == [1, 3, 0]
    assert ballots.votes == [1, 2, 1]
    assert ignored.votes == [1, 0, 0]
    assert unknown.votes is unknown.model_a is None


def test_a_broken_csv_record_costs_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", [raw(i, f'["{i}"]') for i in range(4)])
    header, *lines = path.read_bytes().splitlines(keepends=True)
    bad = [b"4,too,few\r\n", lines[0].replace(b"Yes", b"Y\xffs"), b'5,"x"y,z\r\n', b'6,"never closed\r\n']
    path.write_bytes(
        b"\xef\xbb\xbf" + header + lines[0] + bad[0] + lines[1] + bad[1] + b"\r\n" + bad[2] + lines[2] + bad[3]
    )
    conversations, rejected = read(path)
    assert [c.id for c in conversations] == ["0", "1", "2"]
    assert [(row["line"], row["id"], row["reason"].split(":")[0]) for row in rejected] == [
        (3, "4", "not 6 fields"),
        (5, "0", "response_a is not UTF-8"),
        (6, None, "not CSV"),
        (8, None, "not CSV"),
    ]


def test_a_broken_json_line_costs_no_other(tmp_path: Path) -> None:
    good = [json.dumps(raw(i, f'["{i}"]')).encode() for i in range(2)]
    sparse = json.dumps({"id": 9, "prompt": ["?"], "response_a": ["!"]}).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good[0], b'{"id": 3', b"", b"[1]", b'{"id": "\xff"}', sparse, good[1]]))
    conversations, rejected = read(path)
    assert [c.id for c in conversations] == ["0", "1"]
    assert [(row["line"], row["id"], row["reason"].split(":")[0]) for row in rejected] == [
        (2, None, "not JSON"),
        (4, None, "not an object"),
        (5, None, "not JSON"),
        (6, "9", "response_b is empty"),
    ]


def test_all_problems_of_all_files_are_one_message(tmp_path: Path) -> None:
    row = raw()
    write(tmp_path / "missing.csv", [{"id": 1, "question": "?"}])
    write(tmp_path / "extra.parquet", [row | {"slug": "s", "winner_tie": 1}])
    write(tmp_path / "both.jsonl", [row | {"votes": "1", "votes_a": 1, "votes_b": 0, "votes_tie": 0}])
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("id,prompt,response_a,response_b\n")
    (tmp_path / "twice.csv").write_text("id,id,prompt,response_a,response_b\n1,1,[],[],[]\n")
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "pretty.jsonl").write_text("[\n]\n")
    (tmp_path / "train.xlsx").touch()
    with pytest.raises(ValueError) as caught:
        open_sources(data_config(tmp_path / "*.*", "none/*.csv"))
    message = str(caught.value)
    for said in (
        "missing.csv: missing columns ['prompt', 'response_a', 'response_b'], found ['id', 'question']",
        "missing.csv: unknown columns ['question']; list them in data.ignore_columns",
        "extra.parquet: unknown columns ['slug']",
        "extra.parquet: missing columns ['winner_model_a', 'winner_model_b']",
        "both.jsonl: both 'votes' and",
        "empty.csv: is empty",
        "header.csv: is empty",
        "twice.csv: column names occur twice",
        "broken.parquet: cannot be read as .parquet",
        "pretty.jsonl: holds no row that can be read, the first is not JSON",
        "train.xlsx: unknown suffix '.xlsx'; known are .csv, .parquet, .jsonl",
        "'none/*.csv' matches no file",
    ):
        assert said in message


SAMPLE = "id,prompt,response_a,response_b\n1,[],[],[]\n"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("semicolons.csv", SAMPLE.replace(",", ";").encode(), "seems to be separated by ';': save it with commas"),
        ("quoted.csv", b'"id";"prompt"\n"1";"a"\n', "seems to be separated by ';': save it with commas"),
        (
            "tabs.csv",
            SAMPLE.replace(",", "\t").encode("utf-8-sig"),
            "seems to be separated by tabs: save it with commas",
        ),
        ("utf16.csv", SAMPLE.encode("utf-16"), "seems to be UTF-16: save it as UTF-8"),
        ("utf16le.csv", SAMPLE.encode("utf-16-le"), "seems to be UTF-16 or no text at all: save it as UTF-8"),
        ("packed.csv", gzip.compress(SAMPLE.encode()), "seems to be compressed by gzip: unpack it"),
        ("packed.parquet", gzip.compress(SAMPLE.encode()), "seems to be compressed by gzip: unpack it"),
        ("sheet.csv", b"PK\x03\x04 the rest", "seems to be a zip archive or an Excel sheet: unpack it"),
        ("columns.jsonl", b"PAR1 the rest", "seems to be parquet: name it .parquet"),
        ("lines.csv", b'{"id": 1}\n', "seems to be JSON: name it .jsonl"),
        ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\n", "seems to be a Git LFS pointer"),
        ("page.csv", b"<!DOCTYPE html><html>Sign in</html>", "seems to be a web page: download the file itself"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        open_sources(data_config(tmp_path / name))
    (problem,) = str(error.value).splitlines()[1:]  # nothing about garbage for columns
    assert problem.startswith(f"  - {tmp_path / name}: {told}")


def test_odd_beginnings_of_good_files_are_no_other_kind(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("<b>,{c},id,prompt,response_a,response_b\n;,|,1,[],[],[]\n")
    (source,) = open_sources(data_config(path, ignore_columns=["<b>", "{c}"]))
    assert len(list(source.rows())) == 1


@pytest.mark.parametrize(
    ("column", "cell"), [("winner", "model_a"), ("Winner", "?"), ("outcome", "tie (bothbad)"), ("label", 2)]
)
def test_nobody_is_told_to_ignore_votes(tmp_path: Path, column: str, cell: object) -> None:
    path = write(tmp_path / "train.csv", [raw(slug="s", **{column: cell})])
    with pytest.raises(UserError) as error:
        open_sources(data_config(path))
    votes, others = str(error.value).splitlines()[1:]
    assert (
        f"columns ['{column}'] seem to hold the votes" in votes
        and "winner_model_a" in votes
        and "ignore_columns" not in votes
    )
    assert "unknown columns ['slug']; list them in data.ignore_columns" in others
    some = write(tmp_path / "some.csv", [raw(winner_tie=1)])
    with pytest.raises(UserError, match=r"missing columns \['winner_model_a', 'winner_model_b'\]; add them") as error:
        open_sources(data_config(some))
    assert "ignore" not in str(error.value).replace(str(tmp_path), "")


def test_winners_may_be_truth_values(tmp_path: Path) -> None:
    for cells in (("True", "False", "False"), ("TRUE", "false", "0"), (True, False, False)):
        for name in ("train.csv", "train.jsonl"):
            (found,), _ = read(write(tmp_path / name, [raw(**dict(zip(WINNERS, cells, strict=True)))]))
            assert found.votes == [1, 0, 0]


def test_parquet_that_is_damaged_further_on_is_named(tmp_path: Path) -> None:
    table = pl.DataFrame([raw(i, f'["{i * 7919 % 10007}"]') for i in range(4000)])
    path = tmp_path / "train.parquet"
    table.write_parquet(path, row_group_size=500, compression="uncompressed", statistics=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    (source,) = open_sources(data_config(path))  # it begins well
    with pytest.raises(
        UserError, match=r"train\.parquet is damaged after row [1-9][\d,]* .*: download or write it again"
    ):
        list(source.rows())


def test_ids_are_the_same_whatever_way_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    floats = [raw(identity, f'["{identity}"]') for identity in (1000.0, 1.5, float("nan"))]
    conversations, rejected = read(write(tmp_path / "floats.parquet", floats))  # what pandas makes of a gap
    assert [c.id for c in conversations] == ["1000", "1.5"] and rejected[0]["reason"] == "id is missing: nan"
    (tmp_path / "hub").mkdir()
    texts = write(tmp_path / "hub" / "texts.csv", [raw(i, f'["{i}"]', votes="021") for i in ("007", "1000.0")])
    for found, _ in (read(texts), from_hub(texts), from_hub(texts.parent)):
        assert [(c.id, c.votes) for c in found] == [("007", [1, 1, 1]), ("1000.0", [1, 1, 1])]


def from_hub(path: Path) -> tuple[list[Conversation], pl.DataFrame]:
    table, rejected, _ = collect(open_sources(data_config(hub=str(path))), None, [])
    return from_frame(table), rejected


def test_an_id_that_is_no_utf_8_is_rejected(tmp_path: Path) -> None:
    lone = tmp_path / "lone.jsonl"
    lone.write_text("".join(json.dumps(raw(i, f'["{i}"]')) + "\n" for i in ("\ud83d", "\udfff", "\U0001f600")))
    conversations, rejected = read(lone)
    assert [c.id for c in conversations] == ["\U0001f600"]
    assert [row["reason"] for row in rejected] == [r"id is not UTF-8: '\ud83d'", r"id is not UTF-8: '\udfff'"]


def test_sources_are_named_by_folder_or_file(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for file in ("x.csv", "y.csv"):
            write(tmp_path / folder / file, [raw()])

    def names(*files: str) -> list[str]:
        return [source.name for source in open_sources(data_config(*(tmp_path / file for file in files)))]

    assert names("one/x.csv") == ["x"]
    assert names("*/x.csv", "one/x.csv") == ["one", "two"]
    assert names("one/*.csv") == ["x", "y"]
    assert names("*/*.csv") == [str(tmp_path / file) for file in ("one/x.csv", "one/y.csv", "two/x.csv", "two/y.csv")]


def test_a_hub_data_set_is_read_like_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "arena").mkdir()
    path = write(tmp_path / "arena" / "train.parquet", [raw(i, f'["{i}"]', **A_WINS) for i in range(3)])
    expected, _ = read(path)
    for hub in (path, path.parent):
        (source,) = open_sources(data_config(hub=str(hub)))
        table, _, _ = collect([source], None, [])
        assert [c.prompt for c in from_frame(table)] == [c.prompt for c in expected]
        assert source.name == hub.stem
    with pytest.raises(ValueError, match="nobody/nothing"):
        open_sources(data_config(hub="nobody/nothing"))
