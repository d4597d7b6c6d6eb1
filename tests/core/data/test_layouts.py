"""Each public layout is recognised and gives the conversations and votes that its description says."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.data.collecting import Tally, collect
from core.data.layouts.arena import SIDES
from core.data.layouts.drawing import matches
from core.data.layouts.table import LAYOUTS
from core.data.sources import of_log_odds, open_recognised
from core.data.table import from_frame
from core.errors import UserError
from core.records import LABELS, Conversation
from distill.entry_point import CONF
from tests.core.data.test_readers import data_config
from tests.layout_files import FILES, LAYOUT_OF, texts
from tests.layout_files import write as write_layout

COUNT = 105
# How many conversations of 105 rows a wins, b wins, nobody wins, before sides are exchanged
VOTES = {
    "lmsys": (35, 35, 35),
    "wsdm": (53, 52, 0),
    "arena": (27, 26, 52),
    "arena140k": (27, 26, 52),
    "graded": (45, 45, 15),
    "pandalm": (35, 35, 35),
    "judgebench": (53, 52, 0),
    "shp": (52, 53, 0),
    "transcripts": (105, 0, 0),
    "messages": (105, 0, 0),
    "rewardbench": (105, 0, 0),
    "rewardbench2": (315, 0, 0),
}
DECIDED = {"transcripts": 105, "messages": 105, "rewardbench": 105, "rewardbench2": 315}
DRAWN = {"scored": 84, "ultrafeedback": 420, "nectar": 420}


def read(path: Path, **changes: Any) -> tuple[list[Conversation], list[dict[str, Any]], Tally]:
    table, rejected, (tally,) = collect(open_recognised(data_config(path, **changes)), None, [])
    return from_frame(table), rejected.to_dicts(), tally


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as JSON Lines."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def votes(conversations: list[Conversation]) -> tuple[int, ...]:
    won = Counter(max(range(3), key=(c.votes or []).__getitem__) for c in conversations)
    return tuple(won[k] for k in range(len(LABELS)))


def test_scores_are_log_odds_where_their_column_says_so(tmp_path: Path) -> None:
    path = write_layout("scored", tmp_path, COUNT)
    assert of_log_odds(open_recognised(data_config(path)))
    renamed = lines(
        tmp_path,
        [{"judge_score" if k == "judge_logit" else k: v for k, v in row.items()} for row in FILES["scored"](COUNT)],
    )
    assert not of_log_odds(open_recognised(data_config(renamed)))
    both = open_recognised(data_config(path, renamed))
    assert not of_log_odds(both), "those of one data set are taken alike"
    assert not of_log_odds(open_recognised(data_config(write_layout("nectar", tmp_path, COUNT))))


@pytest.mark.parametrize("name", FILES)
def test_a_layout_is_recognised_and_its_votes_are_counted(name: str, tmp_path: Path) -> None:
    path = write_layout(name, tmp_path, COUNT)
    (source,) = open_recognised(data_config(path))
    assert source.layout.name == LAYOUT_OF[name]
    conversations, rejected, tally = read(path)
    assert rejected == [] and tally.read == COUNT and len({c.id for c in conversations}) == len(conversations)
    if name in DRAWN:
        assert len(conversations) == DRAWN[name]
        for c in conversations:
            assert c.score_a is not None and c.score_b is not None
            assert c.votes == [c.score_a > c.score_b, c.score_b > c.score_a, c.score_a == c.score_b]
        return
    a, b, tie = votes(conversations)
    if name in DECIDED:  # the label is not the side
        assert (a + b, tie) == (DECIDED[name], 0) and abs(a - b) < 3 * DECIDED[name] ** 0.5
        return
    assert (a, b, tie) == VOTES[name]


@pytest.mark.parametrize("name", FILES)
def test_a_layout_is_read_without_votes_too(name: str, tmp_path: Path) -> None:
    (source,) = open_recognised(data_config(write_layout(name, tmp_path, 20)), with_votes=False)
    found = [*source.layout.read(source.rows(None), source.reading)]
    assert found and all(outcome.conversation.votes is None for outcome in found)  # type: ignore[union-attr]


def test_texts_turns_and_tags_are_kept(tmp_path: Path) -> None:
    (first, second, *_), _, _ = read(write_layout("arena140k", tmp_path))
    question, a, b = texts(1)
    assert (second.prompt, second.response_a) == ([question, f"{question} And then?"], [a, f"{a} And then?"])
    assert second.response_b == [b, f"{b} And then?"] and (first.model_a, first.model_b) == ("x", "y")
    assert second.tags == {"language": "German", "is_code": "False", "math": "False", "if": "False"}
    ties = [c for c in read(write_layout("arena", tmp_path))[0] if c.votes == [0, 0, 1]]
    assert Counter(c.tags.get("tie") for c in ties) == {None: 26, "both bad": 26}
    (hh, *_), _, _ = read(write_layout("transcripts", tmp_path))
    assert hh.prompt == [texts(0)[0], "All of it."] and hh.response_a[0] == hh.response_b[0] == "What broke?"
    plain = read(write_layout("wsdm", tmp_path))[0]
    assert (
        plain[0].prompt == ["[1, 2] 0"] and plain[20].prompt == ['["not", "a", "list"] 20'] and plain[1].id == "row001"
    )


def test_grades_become_the_votes_that_the_configuration_says(tmp_path: Path) -> None:
    found = read(write_layout("graded", tmp_path, 7), grades=[0.5, 0.75, 1.0])[0]
    assert [c.votes for c in found] == [
        *([1, 0, 0], [0.75, 0, 0.25], [0.5, 0, 0.5], [0, 0, 1], [0, 0.5, 0.5], [0, 0.75, 0.25], [0, 1, 0]),
    ]


def test_in_a_tournament_all_meet_once_and_play_equally_often() -> None:
    for players in range(2, 12):
        games = [*matches(players)]
        assert len({frozenset(game) for game in games}) == len(games) == players * (players - 1) // 2
        for drawn in range(1, len(games) + 1):
            played = Counter(player for game in games[:drawn] for player in game)
            assert max(played.values()) - min(played[player] for player in range(players)) <= 2


def test_pairs_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    path = write_layout("scored", tmp_path)
    before = {c.id: c for c in read(path, pairs_per_prompt=6)[0]}
    pl.read_csv(path).reverse().write_csv(path)
    after = {c.id: c for c in read(path, pairs_per_prompt=6)[0]}
    assert before == after and len(before) == 6 * 21


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("wsdm", {"winner": "Model C"}, "winner is none of model_a, model_b, tie, both_bad: 'Model C'"),
        ("wsdm", {"prompt": ""}, "prompt is empty: ''"),
        ("arena", {"winner": None}, "winner is none of"),
        (
            "arena",
            {"conversation_a": [{"role": "user", "content": "Hi"}]},
            "conversation_a does not begin with the user",
        ),
        ("graded", {"overall_preference": 4}, "overall_preference is no whole number from -3 to 3: 4"),
        ("judgebench", {"label": "A"}, "label is none of A>B, B>A, A=B: 'A'"),
        ("pandalm", {"annotator2": 3}, "annotators say something else than 1 (a), 2 (b), 0 (tie): 1, 3, 2"),
        ("shp", {"labels": 2}, "labels is neither 1 (A) nor 0 (B): 2"),
        (
            "transcripts",
            {"rejected": "\n\nHuman: Other?\n\nAssistant: No."},
            "chosen and rejected answer other prompts",
        ),
        ("rewardbench", {"prompt": None}, "no prompt: chosen holds an answer alone"),
        ("scored", {"judge_logit": None}, "judge_logit is no number: None"),
        ("ultrafeedback", {"completions": []}, "completions holds fewer than two responses: 0"),
    ],
)
def test_a_bad_row_is_rejected_with_the_reason(name: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    rows = FILES[name](25)
    rows[0] |= changes
    _, rejected, tally = read(lines(tmp_path, rows))
    assert tally.rejected == 1 and rejected[0]["line"] == 1 and rejected[0]["reason"].startswith(told)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "image", "text": None, "image": None, "mimeType": "image/png"},
    ],
)
def test_an_image_is_said_to_be_one(part: dict[str, Any], tmp_path: Path) -> None:
    (row,) = FILES["arena"](1)
    for side in ("conversation_a", "conversation_b"):
        row[side][0]["content"] = [{"type": "text", "text": "What is it?"}, part]
    assert "holds an image" in read(lines(tmp_path, [row]))[1][0]["reason"]


@pytest.mark.parametrize(
    ("name", "column"), [("messages", "chosen"), ("rewardbench2", "rejected"), ("arena", SIDES[0])]
)
def test_lists_as_python_prints_them_are_no_texts(name: str, column: str, tmp_path: Path) -> None:
    """Which is what pandas writes to a CSV."""
    rows = [{key: str(cell) for key, cell in row.items()} for row in FILES[name](5)]
    pl.DataFrame(rows).write_csv(tmp_path / "rows.csv")
    with pytest.raises(UserError, match=f"column '{column}' holds lists as Python prints them.* parquet or JSON Lines"):
        read(tmp_path / "rows.csv")


def test_json_lists_below_plain_texts_are_rejected(tmp_path: Path) -> None:
    rows = FILES["wsdm"](110)
    rows[105] |= {key: json.dumps([rows[105][key], "More"]) for key in ("prompt", "response_a", "response_b")}
    _, (rejected,), _ = read(lines(tmp_path, rows))
    assert rejected["line"] == 106 and rejected["reason"].startswith("JSON lists where the first rows are plain texts")


def test_what_stands_around_a_prompt_is_asked_with_it(tmp_path: Path) -> None:
    """As LLaMA-Factory, Alpaca and Orca have it."""
    pair = {"chosen": "A", "rejected": "B"}
    factory = {"instruction": "Sum up.", "input": "Once", "system": "Be kind.", "history": [["Hi", "Ho"]]} | pair
    (found,), _, _ = read(lines(tmp_path, [factory]))
    assert found.prompt == ["Be kind.\n\nHi", "Sum up.\n\nOnce"] and found.response_a[0] == found.response_b[0] == "Ho"
    (found,), _, _ = read(lines(tmp_path, [{"system": "Be kind.", "question": "Why?"} | pair]))
    assert found.prompt == ["Be kind.\n\nWhy?"]
    whole = {side: [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": side}] for side in pair}
    (found,), _, _ = read(lines(tmp_path, [{"system": "Be kind.", "prompt": "Why?"} | whole]))
    assert found.prompt == ["Be kind.\n\nWhy?"]
    told = {"conversations": [{"from": "human", "value": "Why?"}]}
    (found,), _, _ = read(lines(tmp_path, [told | {side: {"from": "gpt", "value": side} for side in pair}]))
    assert found.prompt == ["Why?"] and {*found.response_a, *found.response_b} == {*pair}
    _, (rejected,), _ = read(lines(tmp_path, [FILES["pandalm"](2)[1] | {"instruction": None}]))
    assert rejected["reason"] == "instruction is empty: None"


def test_an_answer_may_look_like_a_list_or_a_conversation(tmp_path: Path) -> None:
    lists = [{"prompt": f"List {i}", "chosen": '["x", "y"]', "rejected": '["z"]'} for i in range(3)]
    found, _, _ = read(lines(tmp_path, lists))
    assert len(found) == 3 and all({*c.response_a, *c.response_b} == {'["x", "y"]', '["z"]'} for c in found)
    talks = {side: f"Human: Hi\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    (found,), _, _ = read(lines(tmp_path, [{"prompt": "Write a dialogue."} | talks]))
    assert found.prompt == ["Write a dialogue."] and {*found.response_a, *found.response_b} == {*talks.values()}
    (found,), _, _ = read(lines(tmp_path, [{"prompt": "\n\nHuman: Hi\n\nAssistant:"} | talks]))
    assert found.prompt == ["Hi"] and {*found.response_a, *found.response_b} == {*talks}


def test_turns_of_helpsteer2(tmp_path: Path) -> None:
    prompt = "Hi\n<extra_id_1>Assistant\nHo\n<extra_id_1>User\nMore"
    rows = [{"prompt": prompt, "response": text, "helpfulness": score} for text, score in (("A", 1), ("B", 4))]
    (found,), _, _ = read(lines(tmp_path, rows))
    assert found.prompt == ["Hi", "More"] and found.response_a[0] == found.response_b[0] == "Ho"


@pytest.mark.parametrize("name", FILES)
def test_csv_json_and_parquet_give_the_same(name: str, tmp_path: Path) -> None:
    rows = FILES[name](10)
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(tmp_path / "rows.parquet")
    told = [{k: json.dumps(cell) if isinstance(cell, dict | list) else cell for k, cell in row.items()} for row in rows]
    pl.DataFrame(told).write_csv(tmp_path / "rows.csv")
    found = [read(path)[0] for path in (lines(tmp_path, rows), tmp_path / "rows.parquet", tmp_path / "rows.csv")]
    assert found[0] == found[1] == found[2]


def test_a_response_is_no_pair_with_itself(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "response": text, "score": score} for text, score in (("A", 1), ("A", 4), ("B", 3))]
    (found,), _, _ = read(lines(tmp_path, rows))
    assert {found.response_a[0]: found.score_a, found.response_b[0]: found.score_b} == {"A": 2.5, "B": 3}
    same = [{"response": "A", "model": model, "overall_score": score} for model, score in (("x", 1), ("y", 4))]
    conversations, (rejected,), _ = read(lines(tmp_path, [{"instruction": "Q", "completions": same}]))
    assert not conversations and rejected["reason"] == "completions holds fewer than two responses: 1"


@pytest.mark.parametrize("column", [None, "question_id"])
def test_votes_for_the_same_pair_are_all_kept(column: str | None, tmp_path: Path) -> None:
    winners = ("model_a", "model_b", "tie", "model_a")
    row = {"prompt": "Q", "response_a": "A", "response_b": "B"} | ({column: 1} if column else {})
    found, rejected, tally = read(lines(tmp_path, [row | {"winner": winner} for winner in winners]))
    assert votes(found) == (1, 1, 1) and not rejected and tally.duplicates == 1


def test_sides_do_not_depend_on_the_name_of_the_file(tmp_path: Path) -> None:
    """So that the hub's data set and a copy of it are the same."""
    path = write_layout("transcripts", tmp_path)
    before = read(path)[0]
    after = read(path.rename(tmp_path / "other.csv"))[0]
    assert [replace(c, source="transcripts") for c in after] == before


def test_categories_may_be_json_in_a_text(tmp_path: Path) -> None:
    rows = FILES["arena"](3)
    texts = [
        {key: json.dumps(cell) if isinstance(cell, dict | list) else cell for key, cell in r.items()} for r in rows
    ]
    assert read(lines(tmp_path, texts))[0] == read(lines(tmp_path, rows))[0]


def test_what_no_layout_has_is_refused_with_the_nearest_and_misspellings_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    table = pl.DataFrame(FILES["wsdm"](5))
    table.rename({"response_a": "respones_a"}).write_csv(path)
    with pytest.raises(UserError, match=r"no layout has these columns.*lmsys lacks 'response_a' \(is it 'respones_a'"):
        read(path)
    for wrong, right in {"modela": "model_a", "langauge": "language", "ID": "id"}.items():
        table.rename({right: wrong}).write_csv(path)
        with pytest.raises(UserError, match=f"column '{wrong}' seems to be '{right}' misspelt: rename it"):
            read(path)
    table.rename({"id": "questoin_id"}).write_csv(path)
    with pytest.raises(UserError, match="column 'questoin_id' seems to be 'question_id' misspelt"):
        read(path)
    table.rename({"model_a": "modela"}).write_csv(path)
    assert len(read(path, layout="wsdm")[0]) == 5
    with pytest.raises(UserError, match=r"data\.layout=arena needs the columns 'conversation_a', 'conversation_b'"):
        read(path, layout="arena")


def test_one_pattern_finds_one_layout_in_a_folder(tmp_path: Path) -> None:
    paths = [write_layout("wsdm", tmp_path, 5), write_layout("transcripts", tmp_path, 5)]
    with pytest.raises(UserError, match=r"matches files of several layouts: .*chosen_rejected.*Name each file"):
        open_recognised(data_config(tmp_path / "*.csv"))
    assert [source.layout.name for source in open_recognised(data_config(*paths))] == ["wsdm", "chosen_rejected"]


def test_the_docs_tell_every_layout_and_its_source() -> None:
    told = (Path(CONF).parent / "docs" / "data.md").read_text()
    for layout in LAYOUTS.values():
        assert f"| `{layout.name}` | {layout.looks} |" in told
        assert all(f"({url})" in told for url in layout.source.split(", "))
