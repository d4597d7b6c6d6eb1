"""Whatever format, compression and name a table has, the same rows come out, and damage is said where it is."""

import csv
import gzip
import io
import json
import logging
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.files import json_values
from core.data.files.opening import open_sources
from core.data.files.reading import open_table
from core.data.files.rows import Row, Source
from core.errors import UserError
from tests.core.data.test_readers import data_config

ROWS = [
    {"id": "007", "prompt": 'Say "hi",\nplease', "answer": "a\tb; c|d"},
    {"id": "1000.0", "prompt": "ÿ漢\U0001f600", "answer": "[1, 2]"},
    {"id": "x", "prompt": "null", "answer": " "},
]
PACKED = ("", ".gz", ".zst")
NAMES = ("table.csv", "table.tsv", "table.parquet", "table.json", "table.jsonl", "table.ndjson")


def packed(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    if suffix == ".zst":
        target = pa.BufferOutputStream()
        with pa.CompressedOutputStream(target, "zstd") as file:
            file.write(content)
        return target.getvalue().to_pybytes()
    return content


def written(suffix: str, rows: Sequence[dict[str, Any]] = ROWS, separator: str = ",") -> bytes:
    """The rows in the format that the suffix names."""
    if suffix == ".parquet":
        target = io.BytesIO()
        pl.DataFrame(rows).write_parquet(target)
        return target.getvalue()
    if suffix == ".json":
        return json.dumps(rows, indent=1).encode()
    if suffix in (".jsonl", ".ndjson"):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), delimiter="\t" if suffix == ".tsv" else separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def table(*paths: Path) -> Source:
    problems: list[str] = []
    source = open_table(paths, "table", problems)
    assert not problems
    assert source
    return source


def cells(*paths: Path) -> list[dict[str, Any]]:
    rows = list(table(*paths).rows())
    assert not [row.problem for row in rows if row.problem]
    return [row.cells for row in rows]


def problem_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    problems: list[str] = []
    assert open_table([path], "table", problems) is None
    (problem,) = problems
    return problem


@pytest.mark.parametrize("name", NAMES)
def test_every_format_and_compression_gives_the_same_rows(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for suffix in PACKED:
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(packed(written(path.with_name(name).suffix), suffix))
            assert table(path).columns == [*ROWS[0]]
            assert cells(path) == ROWS, path
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tabs.csv", written(".tsv"), "text separated by tabs"),
        ("commas.tsv", written(".csv"), "text separated by commas"),
        ("semicolons.csv", written(".csv", separator=";"), "text separated by semicolons"),
        ("bars.csv", written(".csv", separator="|"), "text separated by '|'"),
        ("packed.csv", packed(written(".csv"), ".gz"), "CSV, compressed by gzip"),
        ("packed.parquet", packed(written(".jsonl"), ".zst"), "JSON Lines, compressed by zstd"),
        ("open.csv.gz", written(".csv"), "CSV, not compressed"),
        ("array.jsonl", written(".json"), "JSON"),
        ("array.csv", written(".json"), "JSON"),
        ("lines.csv", b"\xef\xbb\xbf" + written(".jsonl"), "JSON Lines"),
        ("columns.jsonl", written(".parquet"), "parquet"),
        ("table.csv", written(".parquet"), "parquet"),
        ("table.txt", written(".jsonl"), "JSON Lines"),
        ("lines.json", written(".jsonl"), None),
        ("TABLE.CSV", written(".csv"), None),
        ("bytes.csv", b"\xef\xbb\xbf" + written(".csv"), None),
        ("pretty.json", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(), None),
        ("glued.json", "".join(map(json.dumps, ROWS)).encode(), None),
        ("columns.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode(), None),
        ("pandas.json", json.dumps({n: {str(i): r[n] for i, r in enumerate(ROWS)} for n in ROWS[0]}).encode(), None),
    ],
)
def test_a_file_is_read_as_what_it_holds_and_that_is_told_where_its_name_says_otherwise(
    tmp_path: Path, name: str, content: bytes, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.INFO):
        assert cells(tmp_path / name) == ROWS
    said = f"{tmp_path / name} is read as what it holds: {told}"
    assert {record.getMessage() for record in caplog.records} == ({said} if told else set())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("utf16.csv", "id,prompt\n1,2\n".encode("utf-16"), "seems to be UTF-16: save it as UTF-8"),
        ("utf16.json", '[{"id": 1}]'.encode("utf-16"), "seems to be UTF-16: save it as UTF-8"),
        ("bare.csv", "id,prompt\n1,2\n".encode("utf-16-le"), "seems to be UTF-16 or no text at all: save it as UTF-8"),
        ("sheet.csv", b"PK\x03\x04 the rest", "seems to be a zip archive or an Excel sheet: unpack it"),
        ("sheet.xlsx", b"PK\x03\x04 the rest", "seems to be a zip archive or an Excel sheet: unpack it"),
        ("more.csv", b"BZh91AY", "seems to be compressed by bzip2: unpack it"),
        ("twice.csv.gz", packed(packed(written(".csv"), ".gz"), ".gz"), "seems to be compressed by gzip: unpack it"),
        ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\n", "seems to be a Git LFS pointer"),
        ("page.csv", b"\n<!DOCTYPE html><html>Sign in</html>", "seems to be a web page: download the file itself"),
        ("page.jsonl.gz", packed(b"<html>Sign in</html>", ".gz"), "seems to be a web page: download the file itself"),
        ("table.txt", written(".csv"), "unknown suffix '.txt'; known are .parquet, .json, .jsonl, .ndjson, .csv, .tsv"),
        ("empty.csv", b"", "is empty; leave it out"),
        ("empty.json", b"", "is empty; leave it out"),
        ("empty.jsonl.gz", packed(b"", ".gz"), "is empty; leave it out"),
        ("nothing.json", b"[]", "is empty; leave it out"),
        ("header.csv", b"id,prompt\n", "is empty; leave it out"),
        ("empty.parquet", b"", "cannot be read as parquet: "),
        ("broken.parquet", b"no parquet", "cannot be read as parquet: "),
        ("cut.parquet", written(".parquet")[:-9], "cannot be read as parquet: "),
        ("cut.parquet.gz", packed(written(".parquet"), ".gz")[:-9], "is damaged (Truncated compressed stream)"),
        ("cut.json.gz", packed(written(".json"), ".gz")[:-9], "is damaged (Truncated compressed stream)"),
        ("cut.csv.gz", packed(written(".csv"), ".gz")[:5], "is damaged (Truncated compressed stream): download or"),
        ("words.json", b"Hello", "is damaged after row 0 (Expecting value: 'Hello')"),
        ("words.jsonl", b"Hello\n", "holds no row that can be read, the first is not JSON"),
        ("numbers.json", b"[1, 2]", "holds no row that can be read, the first is not an object: 1"),
    ],
)
def test_a_file_that_cannot_be_read_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    problem = problem_of(tmp_path / name, content)
    assert problem.startswith(str(tmp_path / name))
    assert problem.removeprefix(str(tmp_path / name)).lstrip(": ").startswith(told)
    assert "\n" not in problem


@pytest.mark.parametrize("name", ["one.jsonl", "one.ndjson.gz"])
def test_a_line_of_lists_is_a_row_where_the_name_says_lines(tmp_path: Path, name: str) -> None:
    """One conversation of two turns, not two of one."""
    row = {"prompt": ["?", "!"], "response_a": ["a", "b"], "response_b": ["c", "d"]}
    (tmp_path / name).write_bytes(packed(json.dumps(row).encode(), Path(name).suffix))
    assert cells(tmp_path / name) == [row]


def test_odd_beginnings_of_good_files_are_no_other_kind(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("<b>,{c},[d],bzh;id\n;,|,1,<html>\n")
    assert cells(path) == [{"<b>": ";", "{c}": "|", "[d]": "1", "bzh;id": "<html>"}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl.gz", ".jsonl.zst", ".csv.gz", ".tsv.zst", ".json.gz"])
def test_a_file_that_ends_too_early_says_after_which_row(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is cut: what was read before is right, and the message names the file."""
    monkeypatch.setattr(json_values, "CHUNK", 1000)
    rows = [{"id": str(i), "text": f"{i * 7919 % 10007} " * 40} for i in range(300)]
    whole = packed(written(f".{suffix.split('.')[1]}", rows), Path(suffix).suffix if suffix.count(".") > 1 else "")
    path = tmp_path / f"table{suffix}"
    for share in (0.1, 0.5, 0.9, 1.0):
        path.write_bytes(whole[: int(share * (len(whole) - 1))])
        problems: list[str] = []
        read: list[Row] = []
        source = open_table([path], "table", problems)
        with pytest.raises(
            UserError, match=r"table\S+ is damaged( after row [\d,]+)? \(.+\): download or write it again"
        ):
            if source is None:
                raise UserError(*problems)
            for row in source.rows():
                read.append(row)
        assert [row.cells for row in read] == rows[: len(read)], share


def test_what_was_compressed_in_pieces_is_read_whole(tmp_path: Path) -> None:
    content = written(".jsonl")
    half = len(content) // 2
    (tmp_path / "two.jsonl.gz").write_bytes(packed(content[:half], ".gz") + packed(content[half:], ".gz"))
    (tmp_path / "two.jsonl.zst").write_bytes(packed(content[:half], ".zst") + packed(content[half:], ".zst"))
    assert cells(tmp_path / "two.jsonl.gz") == cells(tmp_path / "two.jsonl.zst") == ROWS
    broken = packed(content, ".gz") + b"garbage"
    assert "more.jsonl.gz is damaged (zlib inflate failed" in problem_of(tmp_path / "more.jsonl.gz", broken)


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
objects = st.lists(st.dictionaries(st.text(max_size=3), values, max_size=4), min_size=2, max_size=5)


@given(objects, st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
@settings(max_examples=60, deadline=None)
@pytest.mark.long
def test_json_is_the_same_however_it_is_cut_while_it_is_read(
    objects: list[dict[str, Any]], chunk: int, indent: int | None, as_array: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "CHUNK", chunk)
        path = Path(folder, "table.json")
        one_by_one = "\n".join(json.dumps(each, indent=indent) for each in objects)
        path.write_text(json.dumps(objects, indent=indent, ensure_ascii=False) if as_array else one_by_one)
        assert [row.cells for row in json_values.rows(path)] == objects


def test_a_json_array_takes_no_more_memory_than_some_of_its_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_values, "CHUNK", 1 << 14)
    path = tmp_path / "table.json.gz"
    path.write_bytes(packed(json.dumps([{"id": i, "text": "word " * 200} for i in range(5000)]).encode(), ".gz"))
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_values.rows(path)) == 5000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # of 5 MB
    finally:
        tracemalloc.stop()


def test_a_broken_csv_record_costs_no_other(tmp_path: Path) -> None:
    header, *lines = written(".csv", [{"id": i, "text": "Yes", "more": "No"} for i in range(4)]).splitlines(True)
    bad = [b"4,few\r\n", lines[0].replace(b"Yes", b"Y\xffs"), b'5,"x"y,z\r\n', b'6,"never closed\r\n']
    path = tmp_path / "table.csv"
    path.write_bytes(header + lines[0] + bad[0] + lines[1] + bad[1] + b"\r\n" + bad[2] + lines[2] + bad[3])
    told = [(row.line, row.cells.get("id"), row.problem and row.problem.split(":")[0]) for row in table(path).rows()]
    assert told == [
        (2, "0", None),
        (3, "4", "not 3 fields"),
        (4, "1", None),
        (5, "0", "text is not UTF-8"),
        (6, None, "not CSV"),
        (7, "2", None),
        (8, None, "not CSV"),
    ]


def test_no_row_is_lost_in_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('id,text\n1,"a\nb"c\n2,"to be closed"\n3,"never closed\n4,\n5,\n')
    read = table(path).rows()
    assert [next(read).problem for _ in range(2)] == ["not CSV: ',' expected after '\"', in a record of 2 lines", None]
    with pytest.raises(
        UserError, match=r"after row 3 \(a quote opens there that is not closed in the 3 lines to the end"
    ):
        next(read)


@pytest.mark.parametrize("first", [b'{"id": 0}', b'{"id": 0'])
def test_a_broken_json_line_costs_no_other(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([first, b'{"id": 3', b"", b"[1]", b'{"id": "\xff"}', b'{"more": 1}', b'{"id": 9}']))
    source = table(path)
    assert source.columns == (["id", "more"] if first.endswith(b"}") else ["more", "id"])
    told = [(row.line, row.cells, row.problem and row.problem.split(":")[0]) for row in source.rows()]
    assert told[0] == ((1, {"id": 0}, None) if first.endswith(b"}") else (1, {}, "not JSON"))
    assert told[1:] == [
        (2, {}, "not JSON"),
        (4, {}, "not an object"),
        (5, {}, "not JSON"),
        (6, {"more": 1}, None),
        (7, {"id": 9}, None),
    ]


def test_an_object_of_an_array_that_is_not_utf8_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"id": "\xff"}, 7, {"id": "\\ud83d"}, {"id": "\xc3\xa9"}]')
    assert [(row.line, row.problem and row.problem.split(":")[0]) for row in table(path).rows()] == [
        (1, "not UTF-8"),
        (2, "not an object"),
        (3, None),
        (4, None),
    ]


def test_parquet_that_is_damaged_further_on_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    frame = pl.DataFrame([{"id": str(i), "text": f"{i * 7919 % 10007}", "yes": "Yes", "no": "No"} for i in range(4000)])
    frame.write_parquet(path, row_group_size=500, compression="uncompressed", statistics=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    source = table(path)  # it begins well
    with pytest.raises(
        UserError, match=r"train\.parquet is damaged after row [1-9][\d,]* .*: download or write it again"
    ):
        list(source.rows())


def test_shards_are_one_table_though_their_columns_differ(tmp_path: Path) -> None:
    for i, more in enumerate(({}, {"language": "en"}, {})):
        rows = [{"id": f"{i}{j}", "prompt": "[]", "response_a": "[]", "response_b": "[]"} | more for j in range(2)]
        (tmp_path / f"train-{i:05}-of-00003.parquet").write_bytes(written(".parquet", rows))
    paths = sorted(tmp_path.glob("*.parquet"))
    assert table(*paths).columns == ["id", "prompt", "response_a", "response_b", "language"]
    assert [(row.line, row.cells["id"]) for row in table(*paths).rows()] == [
        *((1, "00"), (2, "01"), (3, "10"), (4, "11"), (5, "20"), (6, "21"))
    ]
    (source,) = open_sources(data_config(tmp_path / "*.parquet"), [])
    assert source.name == "train"
    assert [file["bytes"] for file in source.identity["files"]] == [path.stat().st_size for path in paths]
    paths[1].write_bytes(written(".parquet")[:-1])
    assert problem_of(paths[1], paths[1].read_bytes()).startswith(f"{paths[1]}: cannot be read as parquet")


def test_sources_are_named_by_folder_or_file(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for file in ("x.csv.gz", "y.csv"):
            (tmp_path / folder / file).write_text("id,prompt,response_a,response_b\n1,[],[],[]\n")

    def names(*files: str) -> list[str]:
        return [source.name for source in open_sources(data_config(*(tmp_path / file for file in files)), [])]

    assert names("one/x.csv.gz") == ["x"]
    assert names("*/x.csv.gz", "one/x.csv.gz") == ["one", "two"]
    assert names("one/*") == ["x", "y"]
    assert names("*/*") == [str(tmp_path / file) for file in ("one/x.csv.gz", "one/y.csv", "two/x.csv.gz", "two/y.csv")]
