"""Ranking a file of responses: every response once and in its place, by either kind of judge, also after a kill."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import deploy.predicting.ranks as ranks
from core.errors import UserError
from core.records import Conversation
from core.tables import read_csv
from deploy.predicting.ranks import file_of_responses, write_ranks
from deploy.predicting.unlabelled import Source
from deploy.ranking.ranker import Ranker, open_ranker
from tests.composing import configured, scorer
from tests.tiny_exports import tiny_export

PROMPTS = {
    "Why is the sky blue?": ["Because of the air.", "It is not.", "Light is scattered.", "Who knows?"],
    "What is a fold?": ["A part of the data.", "A sheep's house."],
    "Say hello.": ["Hello."],
}
ROWS = [{"prompt": p, "response": r, "model": f"m{i}"} for p, each in PROMPTS.items() for i, r in enumerate(each)]
CONFIG = configured("+exp=smoke", "data.max_rejected=0.2")


@pytest.fixture(scope="module", params=["pointwise", "pairwise"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "tiny" / request.param
    return tiny_export(folder, pointwise=request.param == "pointwise")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ranked(file: Path, export: Path, **changes: Any) -> pl.DataFrame:
    source = Source(str(file), CONFIG.data, None, CONFIG.predict.rules)
    found = file_of_responses(source)
    assert found is not None
    output = file.with_suffix(".ranks.csv")
    output.unlink(missing_ok=True)
    write_ranks(found, source, output, export, scorer("transformers"), CONFIG.predict, "refuse", overwrite=False)
    assert not Path(f"{output}.parts").exists()
    return read_csv(output)


def test_every_response_has_its_line(export: Path, tmp_path: Path) -> None:
    mixed = [ROWS[i] for i in (4, 0, 1, 6, 2, 5, 3)]  # prompts lie where they like
    table = ranked(write(tmp_path / "rows.jsonl", mixed), export)
    assert table["line"].to_list() == [1, 2, 3, 4, 5, 6, 7] and table["model"].to_list() == [r["model"] for r in mixed]
    assert table["prompt"].to_list() == [1, 2, 2, 3, 2, 1, 2]
    for _, group in table.group_by("prompt"):
        order = group.sort("reward", descending=True)
        assert order["rank"].to_list() == [*range(1, len(group) + 1)]
        if len(group) > 1:
            assert group["wins"].mean() == pytest.approx(0.5, abs=1e-6)
    if export.name == "pairwise":
        assert (table["low"] <= table["reward"]).all() and (table["reward"] <= table["high"]).all()
    else:
        assert table["low"].null_count() == len(table)


@pytest.mark.long
def test_one_row_a_prompt_gives_the_same_ranks(export: Path, tmp_path: Path) -> None:
    expected = ranked(write(tmp_path / "rows.jsonl", ROWS), export)
    texts = [{"prompt": prompt, "responses": each} for prompt, each in PROMPTS.items()]
    items = [
        {"prompt": prompt, "completions": [{"response": text, "model": f"m{i}"} for i, text in enumerate(each)]}
        for prompt, each in PROMPTS.items()
    ]
    for name, rows in (("texts", texts), ("items", items)):
        found = ranked(write(tmp_path / f"{name}.jsonl", rows), export)
        assert found["rank"].to_list() == expected["rank"].to_list(), name
        assert np.allclose(found["reward"], expected["reward"], atol=1e-4)


def test_a_killed_run_goes_on(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    expected = ranked(file, export)
    asked: list[set[str]] = []

    def dying(ranker: Ranker, groups: dict[str, Any]) -> pl.DataFrame:
        asked.append(set(groups))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return standings(ranker, groups)

    standings = ranks.standings
    monkeypatch.setattr(ranks, "standings", dying)
    monkeypatch.setattr(ranks, "pieces", lambda groups, rows: ({name: group} for name, group in groups.items()))
    with pytest.raises(KeyboardInterrupt):
        ranked(file, export)
    found = ranked(file, export)
    assert asked == [{"1"}, {"2"}, {"2"}, {"3"}]
    assert found.drop("reward", "low", "high", "wins").equals(expected.drop("reward", "low", "high", "wins"))


def test_ranks_of_the_first_rows_are_none_of_all(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the first rows a prompt has fewer responses to be ranked with."""
    file = write(tmp_path / "rows.jsonl", ROWS)
    source = Source(str(file), CONFIG.data, 3, CONFIG.predict.rules)
    found = file_of_responses(source)
    assert found is not None

    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ranks, "write_table", dying)
        write_ranks(
            *(found, source, file.with_suffix(".ranks.csv"), export, scorer("transformers"), CONFIG.predict, "refuse"),
            overwrite=False,
        )
    with pytest.raises(UserError, match="limit"):
        ranked(file, export)


def test_rows_that_cannot_be_read_are_listed(export: Path, tmp_path: Path) -> None:
    broken = [*ROWS, {"prompt": "Why?", "response": " ", "model": "m"}]
    table = ranked(write(tmp_path / "rows.jsonl", broken), export)
    assert len(table) == len(ROWS)
    (row,) = read_csv(tmp_path / "rows.ranks.unreadable.csv").rows(named=True)
    assert row["line"] == 8 and "holds no text" in row["reason"]
    with pytest.raises(UserError, match=r"2 of 3 rows cannot be read"):
        ranked(write(tmp_path / "most.jsonl", [*broken[-1:] * 2, ROWS[0]]), export)


def test_too_many_responses_to_a_prompt_are_refused(export: Path, tmp_path: Path) -> None:
    many = [{"prompt": "Count.", "response": str(i)} for i in range(1001)]
    with pytest.raises(UserError, match=r"row 1: its prompt has 1001 responses, and 1000 can be ranked"):
        ranked(write(tmp_path / "many.jsonl", many), export)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response_a": "a", "response_b": "b"},
        {"prompt": "p", "response_a": "a", "response_b": "b", "output": "what else"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "response": "what else"},
    ],
)
def test_a_file_of_pairs_is_none(row: dict[str, str], tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [row])
    assert file_of_responses(Source(str(pairs), CONFIG.data, None, CONFIG.predict.rules)) is None


def test_each_prompt_alone_has_the_rewards_that_the_file_has(export: Path, tmp_path: Path) -> None:
    table = ranked(write(tmp_path / "rows.jsonl", ROWS), export)
    with open_ranker(export, scorer("transformers")) as ranker:
        alone = [
            reward
            for prompt, texts in PROMPTS.items()
            for found in ranker.standings(
                {"": [Conversation(str(i), [prompt], [text], [text]) for i, text in enumerate(texts)]}
            ).values()
            for reward in found.rewards
        ]
    np.testing.assert_allclose(alone, table["reward"], atol=1e-4)
