"""Tags of the data are slices of the report: what is planted is found, and chance is seldom flagged."""

from dataclasses import replace

import numpy as np
import pytest

from core.records import BOTH_BAD, Conversation
from eval.conclusions import Bias, Slice
from eval.slices import FEWEST, VALUES, find_slices

LEVEL = 0.05


def judged(
    rng: np.random.Generator, tags: list[dict[str, str]], wrong: np.ndarray
) -> tuple[list[Conversation], np.ndarray, np.ndarray]:
    """Conversations with `tags`, a calibrated judge of two labels but on rows that are `wrong`, and votes."""
    odds = rng.normal(0, 1, len(tags))
    a = 1 / (1 + np.exp(-odds))
    won = rng.random(len(tags)) < a
    said = np.where(wrong, 1 - a, a)
    votes = np.column_stack([won, ~won]).astype(float)
    rows = [Conversation(str(i), ["what is it"], ["x"], ["y"], group=str(i), tags=tag) for i, tag in enumerate(tags)]
    return rows, np.column_stack([said, 1 - said]), votes


def found(rows: list[Conversation], probabilities: np.ndarray, votes: np.ndarray) -> dict[str, Bias]:
    return {bias.name: bias for bias in find_slices(rows, probabilities, votes, level=LEVEL, truncated=None)}


def drawn_tags(rng: np.random.Generator, count: int) -> list[dict[str, str]]:
    """Of three tags, one with two values, others with more."""
    names = {"language": ("English", "German", "Thai"), "subset": ("easy", "hard"), "kind": tuple("pqrst")}
    return [{name: str(rng.choice(values)) for name, values in names.items()} for _ in range(count)]


def test_a_planted_difference_is_found_with_its_sign_and_size() -> None:
    rng = np.random.default_rng(0)
    tags = drawn_tags(rng, 3000)
    hard = np.array([tag["subset"] == "hard" for tag in tags])
    rows, probabilities, votes = judged(rng, tags, wrong=hard)
    biases = found(rows, probabilities, votes)
    planted = biases["tag_subset"]
    loss = -np.log((probabilities * votes).sum(axis=1))
    gap = (1 if "hard (subset)" in planted.sentence else -1) * (loss[hard].mean() - loss[~hard].mean())
    assert planted.flagged and planted.value == pytest.approx(gap) and abs(gap) > 0.3
    assert "for 3 tags" in planted.sentence
    slices = {row.x: row for row in planted.table}
    assert set(slices) == {"easy (subset)", "hard (subset)"} and sum(row.count for row in planted.table) == 3000
    surprise = {x: row.surprise for x, row in slices.items() if isinstance(row, Slice)}
    assert abs(surprise["easy (subset)"] or 0) < 0.05 < 0.3 < (surprise["hard (subset)"] or 0)
    assert biases["language"].table[0].x.endswith("(language)"), "the tag, not a guess"


@pytest.mark.long
def test_without_a_difference_tags_are_flagged_no_more_often_than_they_say() -> None:
    rng, flagged, rounds = np.random.default_rng(1), 0, 300
    for _ in range(rounds):
        tags = drawn_tags(rng, 250)
        biases = found(*judged(rng, tags, np.zeros(250, dtype=bool)))
        flagged += any(biases[name].flagged for name in ("language", "tag_subset", "tag_kind"))
    assert flagged / rounds < LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / rounds)


def test_the_largest_values_are_slices_and_the_others_are_one() -> None:
    rng = np.random.default_rng(2)
    values = [f"value {k}" for k in range(VALUES + 3) for _ in range(FEWEST + 20 - k)] + ["rare"] * (FEWEST - 1)
    tags: list[dict[str, str]] = [{"topic": value} for value in values] + [{}] * 50
    rows, probabilities, votes = judged(rng, tags, np.zeros(len(tags), dtype=bool))
    table = found(rows, probabilities, votes)["tag_topic"].table
    assert [row.x for row in table] == [f"value {k} (topic)" for k in range(VALUES)] + ["all other values (topic)"]
    assert sum(row.count for row in table) == len(values), "what has no tag is in no slice"


@pytest.mark.parametrize("value", ["one value", "another"])
def test_what_tells_nothing_apart_is_no_way_to_slice(value: str) -> None:
    few = FEWEST - 1 if value == "another" else 0
    tags: list[dict[str, str]] = [{"source": "one value"}] * (200 - few) + [{"source": value}] * few
    plain, tagged = (
        found(*judged(np.random.default_rng(4), of, np.zeros(200, dtype=bool))) for of in ([{}] * 200, tags)
    )
    assert plain == tagged and set(plain) == {"language", "rounds", "prompt_length"}


def test_ties_of_bad_responses_are_compared_with_other_ties() -> None:
    rng = np.random.default_rng(5)
    tied, bad = np.arange(600) < 300, np.arange(600) < 120
    votes = np.where(tied[:, None], [0.0, 0, 1], np.where(rng.random((600, 1)) < 0.5, [1.0, 0, 0], [0.0, 1, 0]))
    tie = np.where(bad, 0.2, 0.4)
    probabilities = np.column_stack([(1 - tie) / 2, (1 - tie) / 2, tie])
    rows = [
        Conversation(str(i), ["what"], ["x"], ["y"], group=str(i), tags=BOTH_BAD if b else {})
        for i, b in enumerate(bad)
    ]
    ties = found(rows, probabilities, votes)["both_bad"]
    assert [(row.x, row.count) for row in ties.table] == [("other ties", 180), ("ties of two bad responses", 120)]
    assert ties.value == pytest.approx(np.log(2)) and ties.flagged
    untagged = found([replace(c, tags={}) for c in rows], probabilities, votes)
    assert "both_bad" not in untagged and "tag_tie" not in found(rows, probabilities, votes)
