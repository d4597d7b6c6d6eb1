"""Nothing is lost or read twice, exchanging sides is what `swap` says, and no prompt sits in two folds."""

import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.artefacts.building import Artefact
from core.data.collecting import collect, is_swapped
from core.data.config import FoldsConfig
from core.data.files.rows import Row, Source
from core.data.folds import assign_folds, labels
from core.data.groups import assign_groups, group_of
from core.data.layouts.layout import Reading
from core.data.layouts.lmsys import LMSYS
from core.data.layouts.recognising import Recognised
from core.data.table import from_frame, load_conversations, save_conversations, to_frame
from core.records import BOTH_BAD, LABELS, TEST, Conversation

WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
GROUPED = FoldsConfig(count=5, split="grouped", seed=0)
BLACKPEARL = FoldsConfig(count=5, split="blackpearl", seed=2025)


def source(rows: list[dict[str, Any]], name: str = "test") -> Recognised:
    def numbered() -> Iterator[Row]:
        return (Row(line, row) for line, row in enumerate(rows, 2))

    reading, others = Reading(name, frozenset(rows[0])), [column for column in rows[0] if column == "evaluator"]
    return Recognised(Source(name, [*rows[0]], numbered, {}), LMSYS, reading, others)


def raw(identity: object, text: str = "Yes", **more: Any) -> dict[str, Any]:
    cells = {
        "id": identity,
        "model_a": "x",
        "model_b": "y",
        "prompt": ["Hi?"],
        "response_a": [text],
        "response_b": ["No"],
    }
    return cells | dict(zip(WINNERS, (1, 0, 0), strict=True)) | more


def voted(*votes: list[float] | None, prompts: list[str] | None = None, near: float | None = None) -> pl.DataFrame:
    texts = prompts or [f"prompt {i}" for i in range(len(votes))]
    pairs = enumerate(zip(texts, votes, strict=True))
    table = to_frame([Conversation(str(i), [text], ["Yes"], ["No"], votes=vote) for i, (text, vote) in pairs])
    return assign_groups(table, near)


def one_hot(label: int) -> list[float]:
    return [float(label == k) for k in range(3)]


def test_duplicates_are_dropped_but_a_second_annotator_is_not() -> None:
    rows = [raw(1), raw(2), raw(3, evaluator="other"), raw(1, "Hm"), raw(4, winner_tie=1)]
    rows = [{"evaluator": "one"} | row for row in rows]
    table, rejected, (tally,) = collect([source(rows)], None, [])
    assert table["id"].to_list() == ["1", "3"]
    assert (tally.read, tally.kept, tally.duplicates, tally.rejected) == (5, 2, 1, 2)
    assert rejected["line"].to_list() == [5, 6]
    assert rejected["id"].to_list() == ["1", "4"]
    assert rejected["reason"][0] == "duplicate id with other content: '1'"


def test_ids_carry_their_source_where_there_are_several() -> None:
    sources = [source([raw(1, "A"), raw(2, "B")], "one"), source([raw(1, "C"), raw(9, "A")], "two")]
    table, _, tallies = collect(sources, None, [])
    assert table["id"].to_list() == ["one/1", "one/2", "two/1"]
    assert table["source"].to_list() == ["one", "one", "two"]
    assert [tally.duplicates for tally in tallies] == [0, 1]
    limited, _, _ = collect(sources, 1, [])
    assert limited["id"].to_list() == ["one/1", "two/1"]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("xyz"), st.booleans()), min_size=1))
@settings(max_examples=50, deadline=None)
def test_no_row_is_lost(drawn: list[tuple[int, str, bool]]) -> None:
    rows = [raw(i, text, winner_tie=int(bad)) for i, text, bad in drawn]
    table, rejected, (tally,) = collect([source(rows)], None, [])
    assert tally.read == len(rows) == len(table) + tally.duplicates + len(rejected)
    assert table["id"].n_unique() == len(table)


def test_shuffled_sides_are_swapped_conversations() -> None:
    rows = [raw(i, f"Yes {i}") for i in range(400)]
    plain = from_frame(collect([source(rows)], None, [])[0])
    mixed = from_frame(collect([source(rows)], None, ["test"])[0])
    assert mixed == [c.swap() if is_swapped(c) else c for c in plain]
    assert 150 < sum(is_swapped(c) for c in plain) < 250
    assert [is_swapped(c) for c in plain] != [is_swapped(replace(c, source="other")) for c in plain]
    among_others = from_frame(collect([source(rows), source([raw("z", "?")], "other")], None, ["test"])[0])
    assert [replace(c, id=c.id.removeprefix("test/")) for c in among_others[:-1]] == mixed
    assert all(c.swap().swap() == c and c.swap().fingerprint() == c.fingerprint() for c in mixed)
    assert all((c.swap().sided_fingerprint() ^ c.sided_fingerprint()) == (c.response_a != c.response_b) for c in mixed)
    with pytest.raises(ValueError, match=r"shuffle_sides=\['tset'\].*\['test'\]"):
        collect([source(rows)], None, ["tset"])


@given(st.text())
@settings(deadline=None)
def test_a_group_is_blind_to_spacing_case_and_unicode_form(text: str) -> None:
    assert group_of("Is it a  FLAT\nStraße?") == group_of(" is it a \ufb02at strasse\uff1f")
    assert group_of(text) == group_of(f" \n{unicodedata.normalize('NFD', text)}\t")
    assert group_of(text) != group_of(text + "x")


def test_the_label_is_what_most_voted() -> None:
    table = voted([1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 1, 1], [2, 2, 0], [1, 1, 1], [0, 2, 2], None)
    assert labels(table).to_list() == ["a", "b", "tie", "a", "tie", "tie", "tie", "none"]


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0, 1, 2, None])), min_size=1), st.integers(2, 6))
@settings(max_examples=100, deadline=None)
def test_groups_never_span_folds(drawn: list[tuple[int, int | None]], count: int) -> None:
    votes = [None if label is None else one_hot(label) for _, label in drawn]
    table = voted(*votes, prompts=[f"Prompt {group}" for group, _ in drawn])
    folds = replace(GROUPED, count=count)
    if len({group for group, _ in drawn}) < count:
        with pytest.raises(ValueError, match=f"count={count}|takes two"):
            assign_folds(table, folds, 0)
        return
    split = assign_folds(table, folds, 0)
    assert split.group_by("group").agg(pl.col("fold").n_unique())["fold"].max() == 1
    assert {*split["fold"]} == {*range(count)}
    shuffled = assign_folds(table.sample(fraction=1, shuffle=True, seed=1), folds, 0)
    assert (
        shuffled.select("group", "fold")
        .unique()
        .sort("group")
        .equals(split.select("group", "fold").unique().sort("group"))
    )


def test_grouped_folds_are_stratified() -> None:
    """As evenly as scikit-learn's StratifiedGroupKFold does it, with a few prompts that are asked very often."""
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng(0)
    strata = rng.choice(4, 3000, p=[0.4, 0.3, 0.2, 0.1])
    prompts = [f"often {i}" for i in rng.integers(0, 8, 600)] + [f"rare {i}" for i in rng.integers(0, 2000, 2400)]
    table = voted(*(None if s == 3 else one_hot(s) for s in strata), prompts=prompts)

    def spread(fold: np.ndarray) -> float:
        shares = np.array([np.bincount(strata[fold == k], minlength=4) for k in range(5)]) / np.bincount(strata)
        return float(abs(shares - 0.2).max())

    theirs = np.zeros(len(strata), dtype=int)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for k, (_, held_out) in enumerate(splitter.split(strata, strata, prompts)):
        theirs[held_out] = k
    ours = spread(assign_folds(table, GROUPED, 0)["fold"].to_numpy())
    assert ours < 0.01
    assert ours <= spread(theirs) + 0.002


def test_the_test_split_follows_from_prompts_and_votes_alone() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.choice(3, size=2000, p=[0.5, 0.3, 0.2])
    table = voted(*map(one_hot, drawn), *[None] * 200, prompts=[f"p{i // 2 % 700}" for i in range(2200)])
    split = assign_folds(table, GROUPED, 0.1)
    test = split.filter(fold=TEST)
    assert 0.08 < len(test) / 2000 < 0.13 and set(split["fold"]) == {TEST, 0, 1, 2, 3, 4}
    assert not set(test["group"]) & set(split.filter(pl.col("fold") != TEST)["group"])
    shares = [labels(test.filter(pl.col("votes").is_not_null())).eq(name).mean() for name in LABELS]
    assert np.abs(np.array(shares) - np.bincount(drawn) / 2000).max() < 0.03
    for other in (replace(GROUPED, count=3), replace(GROUPED, seed=7)):
        assert assign_folds(table, other, 0.1).filter(fold=TEST)["id"].to_list() == test["id"].to_list()
    shuffled = assign_folds(table.sample(fraction=1, shuffle=True, seed=1), GROUPED, 0.1)
    assert set(shuffled.filter(fold=TEST)["id"]) == set(test["id"])


def test_what_nobody_voted_on_is_never_tested_on_and_a_few_prompts_are_all_trained_on() -> None:
    table = voted(*[None] * 300, *[one_hot(k % 3) for k in range(300)])
    assert assign_folds(table, GROUPED, 0.2).filter(fold=TEST)["votes"].null_count() == 0
    few = assign_folds(voted(*[one_hot(0)] * 4), replace(GROUPED, count=2), 0.1)
    assert TEST not in few["fold"]
    with pytest.raises(ValueError, match=r"data\.test_share=0\.1 with data\.folds\.split=blackpearl"):
        assign_folds(table, BLACKPEARL, 0.1)


def test_blackpearl_is_the_published_split() -> None:
    from sklearn.model_selection import StratifiedKFold

    y = np.random.default_rng(0).choice(3, 300)
    fold = assign_folds(voted(*map(one_hot, y)), BLACKPEARL, 0)["fold"].to_numpy()
    for k, (_, held_out) in enumerate(StratifiedKFold(5, shuffle=True, random_state=2025).split(y, y)):
        assert np.flatnonzero(fold == k).tolist() == held_out.tolist()


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        (replace(BLACKPEARL, seed=0), r"seed=0: the blackpearl split has count=5 and seed=2025"),
        (replace(BLACKPEARL, count=4), r"count=4.*the blackpearl split has count=5"),
        (replace(GROUPED, count=1), r"count=1: .* into 2 to 20"),
        (replace(GROUPED, count=21), r"count=21: 20 conversations \(20 first prompts.* into 2 to 20 grouped folds"),
    ],
)
def test_impossible_folds_are_refused(folds: FoldsConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        assign_folds(voted(*[one_hot(0)] * 20), folds, 0)


def test_tags_and_scores_are_kept_and_tables_of_before_have_none() -> None:
    plain = Conversation("x", ["q"], ["a"], ["b"], votes=[0, 0, 1])
    tagged = replace(plain, score_a=7.0, score_b=0.1, tags={"language": "English", **BOTH_BAD})
    assert from_frame(to_frame([tagged, plain])) == [tagged, plain]
    assert from_frame(to_frame([tagged]).drop("score_a", "score_b", "tags")) == [plain]
    assert (tagged.swap().score_a, tagged.swap().score_b, tagged.swap().tags) == (0.1, 7.0, tagged.tags)
    assert tagged.swap().swap() == tagged and tagged.fingerprint() == plain.fingerprint()


def test_only_a_finished_table_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    table = assign_folds(voted(*[one_hot(k % 3) for k in range(9)], None), replace(GROUPED, count=2), 0)
    save_conversations(folder, table)
    with pytest.raises(ValueError, match=r"not finished.*python -m distill\.prepare data=mine"):
        load_conversations(folder)
    Artefact(folder, "prepare", {}, [], tmp_path).finish()
    assert load_conversations(folder) == from_frame(table)
    assert {*labels(table)} == {*LABELS, "none"}
