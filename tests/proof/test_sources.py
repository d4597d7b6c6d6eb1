"""The public sets made of their originals: each field where it belongs, nothing made of what is not as expected."""

import json
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.public import VARIABLE, public_folder
from core.data.sources import open_recognised
from proof.sources.__main__ import main
from proof.sources.alpaca_eval import FILE, MODELS, REFERENCE
from proof.sources.lmsys_row import majority
from proof.sources.making import as_table, digest, make
from proof.sources.source import Source, blob_id
from proof.sources.table import SOURCES
from tests.composing import configured
from tests.running import ROOT

PANDALM = [
    {
        "idx": 4,
        "motivation_app": "Tap",
        "cmp_key": "pine-7b_elm-3.5b",
        "instruction": "Mend the sentence.",
        "input": "the tap drip, «always»",
        "response1": 'The tap "drips".',
        "response2": True,
        "annotator1": 2,
        "annotator2": 0,
        "annotator3": 2,
    },
    {
        "idx": 9,
        "motivation_app": "Tap",
        "cmp_key": "elm-3.5b_oak",
        "instruction": "Name a tree.",
        "input": "",
        "response1": False,
        "response2": "",
        "annotator1": 1,
        "annotator2": 2,
        "annotator3": 0,
    },
]


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")


def write_csv(path: Path, header: str, *lines: str) -> None:
    write(path, "\n".join([header, *lines, ""]))


def write_lines(path: Path, *items: Any) -> None:
    write(path, "".join(json.dumps(item) + "\n" for item in items))


def one_turn(row: dict[str, Any]) -> list[str]:
    """Question and answers, of which each must be a list of one turn."""
    (texts,) = zip(*(json.loads(row[name]) for name in ("prompt", "response_a", "response_b")), strict=True)
    return list(texts)


def winner(row: dict[str, Any]) -> str:
    (found,) = (label for label in ("model_a", "model_b", "tie") if row[f"winner_{label}"] == 1)
    return found


def test_all_pairs_of_four_answers_have_the_verdict_of_their_place(tmp_path: Path) -> None:
    questions = [
        {"question": f"Which {thing}?", "preference": preference}
        | {f"prediction {i}": f"{thing} {i}" for i in (1, 2, 3, 4)}
        for thing, preference in (("nail", [0, 1, 2, 1, 2, 2]), ("saw", [2, 2, 2, 2, 2, 1]))
    ]
    write(tmp_path / "tasks/qa_feedback/data/dev_feedback.json", json.dumps(questions))
    rows = [*SOURCES["finegrained_rlhf_dev"].rows(tmp_path)]
    assert [row["id"] for row in rows] == [*range(12)] and [row["question_idx"] for row in rows] == [0] * 6 + [1] * 6
    assert [one_turn(row)[0] for row in rows] == ["Which nail?"] * 6 + ["Which saw?"] * 6
    pairs = [("1", "2"), ("1", "3"), ("1", "4"), ("2", "3"), ("2", "4"), ("3", "4")]
    assert [one_turn(row)[1:] for row in rows[:6]] == [[f"nail {a}", f"nail {b}"] for a, b in pairs]
    names = {0: "tie", 1: "model_a", 2: "model_b"}
    assert [winner(row) for row in rows] == [names[said] for each in questions for said in each["preference"]]
    assert {(row["model_a"], row["model_b"]) for row in rows} == {(None, None)}


def test_a_crowd_s_votes_are_counted_for_the_side_that_they_name(tmp_path: Path) -> None:
    pairs = [
        {"id": id, "prompt": 8, "text": f"Why {id}?", "slug": f"why-{id}", "result_x": f"left {id}", "model_x": 97}
        | {"result_y": f"right {id}", "model_y": 98}
        for id in (0, 3)
    ]
    write_lines(tmp_path / "pairs-crowd.jsonl", *pairs)
    crowd = [(3, "right"), (0, "left"), (3, "tie"), (3, "right"), (0, "right"), (3, "left"), (3, "right")]
    lines = [f'{id},8,97,98,{worker},{said},"Yew, 7B",Oak' for worker, (id, said) in enumerate(crowd)]
    write_csv(tmp_path / "crowd-comparisons.csv", "id,prompt,model_x,model_y,worker,winner,left,right", *lines)
    for model, verdicts in (("gpt3", {0: "tie", 3: "left"}), ("gpt4", {0: "right", 3: "tie"})):
        lines = [f'{id},8,97,98,{said},"Yew, 7B",Oak' for id, said in verdicts.items()]
        write_csv(tmp_path / f"{model}-crowd-comparisons.csv", "id,prompt,model_x,model_y,winner,left,right", *lines)
    first, second = SOURCES["llmfao"].rows(tmp_path)
    assert [row["id"] for row in (first, second)] == [0, 3]
    assert one_turn(second) == ["Why 3?", "left 3", "right 3"] and second["slug"] == "why-3"
    assert (second["model_a"], second["model_b"]) == ("Yew, 7B", "Oak")
    votes = [[row[f"votes_{label}"] for label in ("a", "b", "tie")] for row in (first, second)]
    assert votes == [[1, 1, 0], [1, 3, 1]] and [winner(first), winner(second)] == ["tie", "model_b"]
    assert [(row["gpt35"], row["gpt4"]) for row in (first, second)] == [("t", "b"), ("a", "t")]


def test_annotators_and_input_of_pandalm(tmp_path: Path) -> None:
    write(tmp_path / "data/testset-v1.json", json.dumps(PANDALM))
    first, second = SOURCES["pandalm_testset"].rows(tmp_path)
    assert one_turn(first) == ["Mend the sentence.\n\nthe tap drip, «always»", 'The tap "drips".', "True"]
    assert one_turn(second) == ["Name a tree.", "False", ""]
    assert [(row["id"], row["model_a"], row["model_b"]) for row in (first, second)] == [
        (4, "pine-7b", "elm-3.5b"),
        (9, "elm-3.5b", "oak"),
    ]
    assert [(row["votes"], winner(row)) for row in (first, second)] == [("202", "model_b"), ("120", "tie")]
    assert "«" in first["prompt"], "letters stay letters"


def sheet(path: Path, *rows: dict[str, Any]) -> None:
    """A workbook as the spreadsheet's program writes it: shared strings, numbers with a point, formatted empty rows."""
    strings = [*dict.fromkeys(text for row in rows for text in (*row, *row.values()) if isinstance(text, str))]
    columns = dict(zip([*dict.fromkeys(name for row in rows for name in row)], "ABCDEFGHIJKLM", strict=False))

    def cells(number: int, row: dict[str, Any]) -> Iterator[str]:
        for name, value in row.items():
            place = f'r="{columns[name]}{number}" s="3"'
            if value is None:
                yield f"<c {place}/>"
            elif isinstance(value, str):
                yield f'<c {place} t="s"><v>{strings.index(value)}</v></c>'
            else:
                yield f"<c {place}><v>{float(value)}</v></c>"

    every = [dict(zip(columns, columns, strict=True)), *rows]
    lines = "".join(f'<row r="{i}">{"".join(cells(i, row))}</row>' for i, row in enumerate(every, 1))
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as workbook:
        texts = "".join(f"<si><t>{text.replace('&', '&amp;')}</t></si>" for text in strings)
        workbook.writestr("xl/sharedStrings.xml", f"<sst {space}>{texts}</sst>")
        workbook.writestr("xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{lines}</sheetData></worksheet>")


def test_annotations_of_a_spreadsheet_find_their_texts(tmp_path: Path) -> None:
    folder = tmp_path / "human_eval/data"
    names = ("oak", "elm", "yew")
    instances = [
        {"id": id, "prompt": f"Plant {id}?\n"}
        | {"completions": [{"model": model, "completion": f"={model} for {id}"} for model in pair]}
        for id in ("task_1", "task_2")
        for pair in (names[:2], names[1:])
    ]
    said = [
        (7, 0, "task_1", "elm", "oak", "a-is-slightly-better", "yes", "no", "R&D"),
        (11, 3, "task_2", "elm", "yew", "b-is-better", "no", "yes", "me"),
        (12, 3, "task_2", "yew", "elm", "tie", "yes", "yes", "R&D"),
        (13, 0, "task_1", "oak", "elm", "a-is-better", "yes", "yes", "me"),
        (14, 1, "task_1", "elm", "yew", "b-is-slightly-better", "no", "no", "me"),
    ]
    header = ("id", "instance_index", "instance_id", "model_a", "model_b", "preference")
    header += ("completion_a_is_acceptable", "completion_b_is_acceptable", "evaluator")
    rows = [{"completion_a": "#ERROR!", "comment": None} | dict(zip(header, each, strict=True)) for each in said]
    write_lines(folder / "eval_instances_tulu_1.jsonl", *instances)
    sheet(folder / "eval_annotations_tulu_1.xlsx", *rows, dict.fromkeys(rows[0]))
    found = [*SOURCES["tulu1_human_eval"].rows(tmp_path)]
    assert [row["id"] for row in found] == [7, 11, 12, 13, 14]
    assert [winner(row) for row in found] == ["model_a", "model_b", "tie", "model_a", "model_b"]
    for row, (_, index, id, model_a, model_b, preference, a, b, evaluator) in zip(found, said, strict=True):
        assert one_turn(row) == [f"Plant {id}?", f"={model_a} for {id}", f"={model_b} for {id}"]
        assert (row["model_a"], row["model_b"], row["instance_id"]) == (model_a, model_b, id)
        assert (row["instance_index"], row["preference"], row["evaluator"]) == (index, preference, evaluator)
        assert (row["a_acceptable"], row["b_acceptable"]) == (a, b)


def test_probabilities_become_log_odds_against_the_reference(tmp_path: Path) -> None:
    probabilities = {"Who?": 0.75, "Why?": 1.0}
    models = dict.fromkeys(MODELS, probabilities) | {REFERENCE: dict.fromkeys(probabilities, 0.5)}
    for model, known in models.items():
        items = [
            {"instruction": prompt, "dataset": f"set of {prompt}", "output_1": f"best: {prompt}", "preference": 1 + p}
            | {"output_2": f"best: {prompt}" if model == REFERENCE else f"{model}: {prompt}", "generator_2": "example"}
            for prompt, p in known.items()
        ]
        write(tmp_path / FILE.format(model), json.dumps(items))
    table = as_table(SOURCES["alpaca_eval_gpt4_turbo"].rows(tmp_path))
    assert table.schema["gpt4_turbo_logit"] == pl.Float32 and len(table) == 2 * (len(MODELS) + 1)
    assert table["prompt"].to_list() == sorted(table["prompt"]), "all responses to a prompt stand together"
    rows = {(row["prompt"], row["model"]): row for row in table.iter_rows(named=True)}
    assert rows["Who?", "phi-2"]["response"] == "phi-2: Who?" and rows["Who?", "phi-2"]["dataset"] == "set of Who?"
    assert rows["Who?", "phi-2"]["gpt4_turbo_logit"] == pytest.approx(1.0986, abs=1e-6)  # ln 3
    assert rows["Why?", "phi-2"]["gpt4_turbo_logit"] == pytest.approx(13.8155, abs=1e-6)  # not infinite
    assert rows["Why?", REFERENCE]["response"] == "best: Why?" and rows["Why?", REFERENCE]["gpt4_turbo_logit"] == 0


def test_rows_that_are_in_the_layout_stay_as_they_are(tmp_path: Path) -> None:
    row = {"id": "007", "model_a": "oak", "model_b": "elm", "prompt": '["Why, ""him""?",null]'}
    write_csv(tmp_path / "src/model/small_train.csv", ",".join(row), '007,oak,elm,"[""Why, \\""him\\""?"",null]"')
    assert [*SOURCES["lmsys_native_100"].rows(tmp_path)] == [row | {"prompt": '["Why, \\"him\\"?",null]'}]


@given(st.tuples(*[st.integers(0, 3)] * 3))
def test_a_majority_has_more_votes_than_any_other(votes: tuple[int, int, int]) -> None:
    counts = dict(zip(("a", "b", "tie"), votes, strict=True))
    chosen = majority(votes)
    ahead = [label for label in counts if all(counts[label] > counts[other] for other in counts if other != label)]
    assert chosen == (ahead[0] if ahead else "tie")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """PandaLM's source for an invented file, which is where it is expected."""
    real, content = SOURCES["pandalm_testset"], json.dumps(PANDALM)
    path, *_ = real.files
    write(tmp_path / "originals" / "PandaLM" / path, content)
    table = as_table(real.rows(tmp_path / "originals" / "PandaLM"))
    return replace(real, files={path: blob_id(content.encode())}, digest=digest(table))


def refused(capsys: pytest.CaptureFixture[str], source: Source, *arguments: str) -> str:
    """What is said of a refusal: one line, and the exit code is 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments, {source.name: source})
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    return said


def test_a_file_that_is_made_is_whole_and_read_as_data(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["all", str(tmp_path / "originals"), str(tmp_path / "made")]
    main(arguments, {source.name: source})
    path = tmp_path / "made" / "pandalm_testset" / "lmsys_schema.csv"
    (read,) = open_recognised(configured("data=human", f"data.files=[{path}]").data)
    found = [outcome.conversation for outcome in read.layout.read(read.rows(None), read.reading)]
    assert [conversation.votes for conversation in found] == [[0, 2, 1], [1, 1, 1]]
    assert [conversation.response_b for conversation in found] == [["True"], [""]]
    assert [*path.parent.iterdir()] == [path] and f"{path}: 2 rows" in capsys.readouterr().out
    written = path.stat().st_mtime_ns
    main(arguments, {source.name: source})
    assert path.stat().st_mtime_ns == written, "the same file is not written again"
    path.write_text("mine")
    assert f"{path} is there with other content" in refused(capsys, source, *arguments)
    assert path.read_text() == "mine"


def test_what_is_missing_or_changed_is_named_with_its_commit(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [source.name, str(tmp_path / "originals"), str(tmp_path / "made")]
    path = tmp_path / "originals" / "PandaLM" / "data" / "testset-v1.json"
    path.write_text(json.dumps(PANDALM[:1]))
    said = refused(capsys, source, *arguments)
    assert f"{path} has changed" in said and source.files["data/testset-v1.json"] in said
    path.unlink()
    said = refused(capsys, source, *arguments)
    assert f"{path} is missing" in said and source.commit in said and "`python -m proof.sources` shows" in said
    assert not (tmp_path / "made").exists()


def test_a_converter_that_makes_other_rows_is_our_defect(source: Source, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="measured on"):
        make(replace(source, digest="0" * 64), tmp_path / "originals", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_without_a_name_each_source_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main([])
    shown, page = capsys.readouterr().out.split("\n\n"), (ROOT / "docs" / "data.md").read_text()
    for source, said in zip(SOURCES.values(), shown, strict=True):
        assert all(each in said for each in (source.name, source.url, source.commit, source.licence, source.output))
        assert ("may be shipped" in said) == source.shippable and f"| `{source.name}` | " in page
        assert "is missing" in said and all(command in said for command in source.commands(Path("originals")))
        listed = subprocess.run(["bash", "-c", f"printf '%s\\n' {source.pattern}"], capture_output=True, text=True)
        assert listed.stdout.split() == [*source.files], "bash reads the same paths"


def test_a_source_that_is_there_is_shown_as_such(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main([], {source.name: source})
    shown = capsys.readouterr().out
    assert "has all files" in shown and "git clone" not in shown and "not there" in shown


@pytest.mark.parametrize("name", SOURCES)
def test_the_files_that_were_measured_on_are_those_that_are_made(name: str) -> None:
    source = SOURCES[name]
    path = ROOT / source.path(public_folder())
    if not path.exists():
        pytest.skip(f"{path} is not there: python -m proof.sources makes it")
    table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    assert digest(table) == source.digest


def test_the_configuration_expects_them_where_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert configured("data=human").data.files == [f"{public_folder()}/*/*.csv"]
    monkeypatch.setenv(VARIABLE, "elsewhere")
    assert configured("data=human").data.files == ["elsewhere/*/*.csv"]
    assert configured("+exp=human").data.files == [str(SOURCES["pandalm_testset"].path(public_folder()))]
    assert configured("data=human").data.shuffle_sides == [SOURCES["finegrained_rlhf_dev"].name]


def test_a_judge_that_is_shipped_learns_from_the_sets_that_may_be_shipped_alone() -> None:
    votes = [source for source in SOURCES.values() if Path(source.output).suffix == ".csv"]
    data = configured("+exp=judge_human").data
    crowded = "llmfao"  # 2,139 pairs of 13 prompts
    kept = [source for source in votes if source.shippable and source.name != crowded]
    assert data.files == [str(source.path(public_folder())) for source in kept]
    assert 0 < len(data.files) < len(votes)
