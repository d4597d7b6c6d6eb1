"""Planted biases are found at their exact size, an honest judge is not accused, and no side of the data is special."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from core.scoring import SWAPPED
from eval.biases import family, find_biases
from eval.conclusions import Bias
from eval.intervals import MIN_GROUPS
from eval.metrics import predict
from eval.slices import is_english
from eval.surface_features import response_features
from tests.eval.simulated_judges import (
    Arena,
    arena,
    excess,
    expected_losses,
    favouring,
    granting,
    honest,
    showing,
    win_rates,
)

LEVEL = 0.05
NAMES = [
    "position",
    "verbosity",
    "verbosity_at_ties",
    "self_enhancement",
    "families",
    "format",
    "refusals",
    "language",
    "rounds",
    "prompt_length",
    "truncation",
]
Logits = tuple[np.ndarray, np.ndarray]
Case = tuple[Logits, float]  # a judge's logits in both orders, and its exact bias on these rows
ARENAS = [arena(1000, seed) for seed in range(25)]


def find(of: Arena, logits: Logits) -> dict[str, Bias]:
    found = find_biases(of.conversations, *logits, level=LEVEL, own="openai/gpt-4", truncated=of.truncated)
    return {bias.name: bias for bias in found}


def row(bias: Bias, x: str) -> Any:
    return next(row for row in bias.table if x in row.x)


def shown_first(strength: float) -> Callable[[Arena, int], Case]:
    """Noise in each order turns some wins into others, so what it does to the mean is averaged over many draws."""

    def judge(of: Arena, seed: int) -> Case:
        draws = [showing(of.law, 1000 + draw, strength) for draw in range(20)]
        gains = [win_rates(predict(ab, ab)) - win_rates(predict(ba, ba)) for ab, ba in draws]
        return showing(of.law, seed, strength), float(np.mean(gains))

    return judge


def liked(side: str, strength: float) -> Callable[[Arena, int], Case]:
    def judge(of: Arena, seed: int) -> Case:
        logits = honest(favouring(of.law, of.sides[side], strength), seed)
        return logits, excess(predict(*logits), of.law, of.sides[side])

    return judge


def own_family(of: Arena, seed: int) -> Case:
    logits = honest(granting(of.law, of.sides["gpt"], 0.1), seed)
    truth = excess(predict(*logits), of.law, of.sides["gpt"])
    assert truth == pytest.approx(0.1, abs=0.01)  # ten points of win rate, but for the noise
    return logits, truth


def confused(where: Callable[[Arena], np.ndarray]) -> Callable[[Arena, int], Case]:
    """A judge that takes a for b on a slice, and there alone."""

    def judge(of: Arena, seed: int) -> Case:
        logits = honest(np.where(where(of)[:, None], of.law[:, SWAPPED], of.law), seed)
        losses = expected_losses(predict(*logits), of.law)
        return logits, float(losses[where(of)].mean() - losses[~where(of)].mean())

    return judge


def foreign(of: Arena) -> np.ndarray:
    return np.array([c.prompt[0].startswith(("Comment", "请")) for c in of.conversations])


PLANTED: dict[str, tuple[str, Callable[[Arena, int], Case]]] = {
    "first": ("position", shown_first(0.5)),
    "last": ("position", shown_first(-0.5)),
    "longer": ("verbosity", liked("longer", 0.8)),
    "shorter": ("verbosity", liked("longer", -0.8)),
    "own family": ("self_enhancement", own_family),
    "refusing": ("refusals", liked("refusing", -1.5)),
    "bold": ("format", liked("bold", 1.0)),
    "foreign": ("language", confused(foreign)),
    "truncated": ("truncation", confused(lambda of: of.truncated)),
    "long": ("rounds", confused(lambda of: np.array([len(c.prompt) > 2 for c in of.conversations]))),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_bias_is_found_at_its_exact_size(planted: str) -> None:
    name, judge = PLANTED[planted]
    covered, errors = 0, []
    for seed, of in enumerate(ARENAS):
        logits, truth = judge(of, seed)
        found = find(of, logits)[name]
        assert found.value is not None and found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
        errors.append(found.value - truth)
        assert found.flagged and found.low * truth > 0, found.sentence  # the right sign, and no doubt about it
    assert covered >= stats.binom.ppf(0.001, len(ARENAS), 1 - LEVEL)
    assert stats.ttest_1samp(errors, 0).pvalue > 0.001  # over all arenas, far closer than in one


def test_a_slice_names_itself_and_how_sure_the_judge_was_there() -> None:
    of = ARENAS[0]
    logits, _ = confused(foreign)(of, 0)
    language = find(of, logits)["language"]
    assert "prompts in other languages" in language.sentence and "worse" in language.sentence
    assert row(language, "other").surprise_low > 0  # wrong where it thought that it knew
    english = row(language, "English")
    assert english.difference is None and "at once" not in language.sentence  # two slices are one comparison
    assert english.surprise_low < 0 < english.surprise_high
    assert row(language, "other").accuracy_high < english.accuracy_low


def test_the_verdict_flips_more_the_less_sure_the_judge_is() -> None:
    of = arena(3000, 0)
    table = find(of, showing(of.law, 0, 1.0))["position"].table
    rates = [row.value for row in table if row.value is not None]
    assert len(rates) > 2 and rates == sorted(rates, reverse=True)
    assert sum(row.count for row in table) == 3000
    told = np.array([[row.low, row.value, row.high] for row in table if row.value is not None])
    assert (told >= 0).all() and (told <= 1).all() and (np.diff(told) > -1e-12).all()


def test_only_liking_length_more_than_people_do_is_verbosity_even_where_people_tied() -> None:
    """The judge that knows the law leans to the longer response on ties as well, by chance in the votes alone."""
    of = arena(20_000, 0)
    honest_judge = find(of, honest(of.law, 0))["verbosity_at_ties"]
    assert not honest_judge.flagged and row(honest_judge, "judge").low > 0.05
    liking = find(of, honest(favouring(of.law, of.sides["longer"], 0.5), 0))
    assert liking["verbosity_at_ties"].flagged and liking["verbosity"].flagged
    ranges = liking["verbosity"].table
    assert len(ranges) == 5 and all(r.judge - r.people == pytest.approx(r.value) and r.low > 0 for r in ranges)
    assert [r.people for r in ranges] == sorted(r.people for r in ranges)  # so people like it, too


@pytest.mark.timeout(240)
@pytest.mark.long
def test_an_honest_judge_is_flagged_no_more_often_than_the_level_says() -> None:
    """At 120 conversations on some 66 prompts, where percentile intervals are too narrow, and for each bias."""
    seeds = 200
    flagged: Counter[str] = Counter()
    for seed in range(seeds):
        of = arena(120, seed + 1000)
        found = find(of, honest(of.law, seed))
        assert [*found] == NAMES
        flagged.update(name for name, bias in found.items() if bias.flagged)
    most = stats.binom.ppf(1 - 0.01 / len(NAMES), seeds, LEVEL)  # all of them hold it 99 times of 100
    assert {name: count for name, count in flagged.items() if count > most} == {}
    assert sum(flagged.values()) > 0  # else this test could not fail


def test_exchanging_the_sides_changes_nothing() -> None:
    of = ARENAS[1]
    ab, ba = showing(favouring(of.law, of.sides["longer"], 0.5), 1, 0.3)
    before = find(of, (ab, ba))
    for share in (1.0, 0.5):
        swapped = np.random.default_rng(0).random(len(ab)) < share
        conversations = [c.swap() if s else c for c, s in zip(of.conversations, swapped, strict=True)]
        exchanged = [np.where(swapped[:, None], now[:, SWAPPED], was) for now, was in ((ba, ab), (ab, ba))]
        after = find(replace(of, conversations=conversations), (exchanged[0], exchanged[1]))
        for name, bias in before.items():
            assert after[name].sentence == bias.sentence
            assert after[name].flagged == bias.flagged
            for now, was in zip(after[name].table, bias.table, strict=True):
                assert vars(now) == pytest.approx(vars(was), abs=1e-9)


def test_everything_is_json_without_nan() -> None:
    for bias in find(ARENAS[2], honest(ARENAS[2].law, 2)).values():
        assert json.loads(json.dumps(dataclasses.asdict(bias), allow_nan=False)) == dataclasses.asdict(bias)


def test_what_cannot_be_told_has_no_value_and_says_why() -> None:
    of = ARENAS[3]
    logits = honest(of.law, 3)
    unvoted = replace(of, conversations=[replace(c, votes=None) for c in of.conversations])
    found = find(unvoted, logits)
    assert found["position"].value is not None and found["position"] == find(of, logits)["position"]
    for name in NAMES[1:]:
        bias = found[name]
        assert (bias.value, bias.low, bias.high, bias.flagged) == (None, None, None, False)
        assert f"fewer than {MIN_GROUPS} prompts" in bias.sentence
    nameless = replace(of, conversations=[replace(c, model_a=None, model_b=None) for c in of.conversations])
    assert [name for name, bias in find(nameless, logits).items() if bias.value is None] == [
        "self_enhancement",
        "families",
    ]
    one_language = find(*_part(of, logits, ~foreign(of)))["language"]
    assert one_language.value is None and [row.x for row in one_language.table] == ["English prompts"]
    assert [bias.value for bias in find(*_part(of, logits, np.zeros(len(of.law), dtype=bool))).values()] == [None] * 11
    without = find_biases(of.conversations, *logits, level=LEVEL)
    assert {bias.name for bias in without} == {*NAMES} - {"self_enhancement", "truncation"}


def _part(of: Arena, logits: Logits, rows: np.ndarray) -> tuple[Arena, Logits]:
    kept = [c for c, keep in zip(of.conversations, rows, strict=True) if keep]
    return replace(of, conversations=kept, truncated=of.truncated[rows]), (logits[0][rows], logits[1][rows])


def test_rows_without_votes_count_for_position_alone() -> None:
    of = ARENAS[4]
    logits = showing(of.law, 4, 0.5)
    rows = np.arange(len(of.law)) % 2 == 0
    some = replace(
        of,
        conversations=[c if keep else replace(c, votes=None) for c, keep in zip(of.conversations, rows, strict=True)],
    )
    found, part = find(some, logits), find(*_part(of, logits, rows))
    assert [name for name in NAMES if found[name] != part[name]] == ["position"]


def test_features_that_were_counted_before_change_nothing() -> None:
    of = ARENAS[4]
    logits = showing(of.law, 4, 0.5)
    some = [c if i % 3 else replace(c, votes=None) for i, c in enumerate(of.conversations)]
    assert find_biases(some, *logits, level=LEVEL, features=response_features(some)) == find_biases(
        some, *logits, level=LEVEL
    )


def test_a_family_against_its_own_is_no_evidence_and_several_votes_are_one_row() -> None:
    of = ARENAS[5]
    ab, ba = honest(of.law, 5)
    families = find(of, (ab, ba))["families"]
    assert [row.x for row in families.table] == ["claude", "llama", "mistral", "some-model"]
    gpt = row(find(of, (ab, ba))["self_enhancement"], "gpt")
    assert gpt.count == abs(of.sides["gpt"]).sum() < sum("gpt" in f"{c.model_a}{c.model_b}" for c in of.conversations)
    side, judge = of.sides["gpt"], win_rates(predict(ab, ba))
    votes = np.array([c.votes for c in of.conversations])
    assert gpt.value == pytest.approx(((judge - win_rates(votes)) * side).sum() / abs(side).sum())
    thrice = replace(of, conversations=[replace(c, votes=[3 * v for v in c.votes or []]) for c in of.conversations])
    assert find(thrice, (ab, ba)) == find(of, (ab, ba))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4-1106-preview", "gpt"),
        ("OpenAI/gpt-oss-20b", "gpt"),
        ("text-davinci-003", "gpt"),
        ("gpt4all-13b-snoozy", "gpt4all-13b-snoozy"),
        ("claude-instant-1", "claude"),
        ("google/gemma-2-9b-it", "gemini"),
        ("palm-2", "gemini"),
        ("codellama-34b-instruct", "llama"),
        ("mixtral-8x7b-instruct-v0.1", "mistral"),
        ("vicuna-13b", "vicuna"),
        ("cerebras-gpt-6.7B", "cerebras-gpt-6.7b"),
    ],
)
def test_families(model: str, expected: str) -> None:
    assert family(model) == expected


def test_languages_are_told_well_enough_for_slices() -> None:
    english = [
        "What is the capital of France?",
        "def f(x): return x + 1",
        "",
        "Who was Émile Zola?",
        "Translate 'der Hund' for me",
    ]
    others = [
        "Wie ist das Wetter in der Stadt?",
        "¿Cuál es la capital de Francia?",
        "Quelle est la capitale de la France ?",
        "Qual é a capital do Brasil e por que não é o Rio?",
        "Какая столица Франции?",
        "法国的首都是什么?",
        "フランスの首都はどこですか?",
        "ما هي عاصمة فرنسا؟",
    ]
    assert is_english(pl.Series(english + others)).to_list() == [True] * len(english) + [False] * len(others)
