"""Whatever format rows come in, the same conversations come out, and what is wrong is said where it is wrong."""

import csv
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
from core.data.config import DataConfig, FoldsConfig
from core.data.layouts.layout import BadRow, Found, Reading
from core.data.layouts.lmsys import conversations as parsed
from core.data.layouts.votes import WINNERS
from core.data.sources import open_recognised
from core.data.table import from_frame
from core.errors import UserError
from core.records import Conversation

TEXTS = ("prompt", "response_a", "response_b")
A_WINS: dict[str, Any] = dict(zip(WINNERS, (1, 0, 0), strict=True))


def data_config(*files: Path | str, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "hub": None,
        "simulate": None,
        "layout": None,
        "grades": [0.6, 0.8, 1.0],
        "pairs_per_prompt": 4,
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
    table, rejected, tallies = collect(open_recognised(data_config(*files, **changes)), None, [])
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
            (source,) = open_recognised(data_config(write(folder / file, [content])))
            # Before any encoder drops an example
            (found,) = source.layout.read(source.rows(None), source.reading)
            assert isinstance(found, Found)
            got = found.conversation
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
    with pytest.raises(BadRow) as caught:
        parsed(cells, Reading("test", frozenset(cells), frozenset(TEXTS)))
    assert str(caught.value).startswith(reason)
    assert len(str(caught.value)) < 300


def test_votes_of_several_people_win_over_the_majority(tmp_path: Path) -> None:
    counts: dict[str, Any] = {"votes_a": 1, "votes_b": 3, "votes_tie": 0}
    (counted,), _ = read(write(tmp_path / "counts.csv", [raw(**A_WINS, **counts)]))
    (ballots,), _ = read(write(tmp_path / "ballots.csv", [raw(**A_WINS, votes="2210")]))
    (unknown,), _ = read(write(tmp_path / "test.csv", [{name: raw()[name] for name in ("id", *TEXTS)}]))
    assert counted.votes == [1, 3, 0]
    assert ballots.votes == [1, 2, 1]
    assert unknown.votes is unknown.model_a is None


def test_all_problems_of_all_files_are_one_message(tmp_path: Path) -> None:
    row = raw()
    write(tmp_path / "missing.csv", [{"id": 1, "question": "?"}])
    write(tmp_path / "extra.parquet", [row | {"slug": "s", "winner_tie": 1}])
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("id,prompt,response_a,response_b\n")
    (tmp_path / "twice.csv").write_text("id,id,prompt,response_a,response_b\n1,1,[],[],[]\n")
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "pretty.jsonl").write_text("[\n]\n")
    (tmp_path / "train.xlsx").touch()
    with pytest.raises(ValueError) as caught:
        open_recognised(data_config(tmp_path / "*.*", "none/*.csv"))
    message = str(caught.value)
    for said in (
        "missing.csv: no layout has these columns: ['id', 'question']. scored_lists lacks",
        "extra.parquet: missing columns ['winner_model_a', 'winner_model_b']",
        "empty.csv: is empty",
        "header.csv: is empty",
        "twice.csv: column names occur twice",
        "broken.parquet: cannot be read as parquet",
        "pretty.jsonl: is empty",
        "train.xlsx: unknown suffix '.xlsx'; known are .parquet, .json",
        "'none/*.csv' matches no file",
    ):
        assert said in message


@pytest.mark.parametrize(("column", "cell"), [("Verdict", "?"), ("outcome", "tie (bothbad)"), ("label", 2)])
def test_nobody_is_told_to_ignore_votes(tmp_path: Path, column: str, cell: object) -> None:
    path = write(tmp_path / "train.csv", [raw(slug="s", **{column: cell})])
    with pytest.raises(UserError) as error:
        open_recognised(data_config(path))
    (votes,) = str(error.value).splitlines()[1:]
    assert f"columns ['{column}'] seem to hold the votes" in votes and "winner_model_a" in votes
    (by_hand,) = open_recognised(data_config(path, layout="lmsys"))
    assert by_hand.unneeded == ["slug", column]
    later = write(tmp_path / "later.csv", [raw(1, seems=""), raw(2, seems="y"), raw(3, seems="model_b")])
    with pytest.raises(UserError, match=r"columns \['seems'\] seem to hold the votes"):
        open_recognised(data_config(later))
    some = write(tmp_path / "some.csv", [raw(winner_tie=1)])
    with pytest.raises(UserError, match=r"missing columns \['winner_model_a', 'winner_model_b'\]; add them"):
        open_recognised(data_config(some))


def test_winners_may_be_truth_values(tmp_path: Path) -> None:
    for cells in (("True", "False", "False"), ("TRUE", "false", "0"), (True, False, False)):
        for name in ("train.csv", "train.jsonl"):
            (found,), _ = read(write(tmp_path / name, [raw(**dict(zip(WINNERS, cells, strict=True)))]))
            assert found.votes == [1, 0, 0]


def test_an_id_that_is_no_utf_8_is_rejected(tmp_path: Path) -> None:
    lone = tmp_path / "lone.jsonl"
    lone.write_text("".join(json.dumps(raw(i, f'["{i}"]')) + "\n" for i in ("\ud83d", "\udfff", "\U0001f600")))
    conversations, rejected = read(lone)
    assert [c.id for c in conversations] == ["\U0001f600"]
    assert [row["reason"] for row in rejected] == [r"id is not UTF-8: '\ud83d'", r"id is not UTF-8: '\udfff'"]
