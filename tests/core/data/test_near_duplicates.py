"""A changed word or a greeting joins two prompts, one template with two topics does not, and the exact rule decides."""

import random
from collections.abc import Sequence

import pytest

from core.data.groups import assign_groups, group_of, joined_prompts
from core.data.near_duplicates import NEIGHBOURS, first_of_each, jaccard, shingles
from core.data.table import to_frame
from core.records import Conversation

NEAR = 0.6
SKY = "Explain why the sky is blue to a child of seven years."
PARAPHRASES = {
    "a word changed": (SKY, "Explain why the sky is blue to a boy of seven years."),
    "the last word changed": (SKY, "Explain why the sky is blue to a child of seven summers."),
    "a greeting added": ("How do I bake bread?", "Hello, how do I bake bread?"),
    "thanks added": (SKY, f"Please {SKY} Thank you!"),
    "punctuation": ("Is tea healthy?", "“Is tea – healthy?!”"),
    "Chinese": (
        "请用简单的语言向一个七岁的孩子解释天空为什么是蓝色的",
        "请用简单的语言向一个八岁的孩子解释天空为什么是蓝色的",
    ),
    "Japanese": ("空がなぜ青いのかを七歳の子供に説明してください", "空がなぜ青いのかを八歳の子供に説明してください"),
    "Thai": ("ช่วยอธิบายให้เด็กฟังว่าทำไมท้องฟ้าเป็นสีฟ้า", "ช่วยอธิบายให้เด็กฟังว่าทำไมท้องฟ้าเป็นสีน้ำ"),
    "Hindi": ("सात साल के बच्चे को समझाओ कि आसमान नीला क्यों होता है", "आठ साल के बच्चे को समझाओ कि आसमान नीला क्यों होता है"),
}
DIFFERENT = [
    *("hi", "hello", "hi there", "thanks", "test", "?", "", "🙂"),
    *(f"Write a poem about {topic}" for topic in ("love", "the sea", "autumn", "my cat", "rain")),
    *(f"What is the capital of {country}?" for country in ("France", "Spain", "Peru")),
    *(f"How many {things}?" for things in ("planets are there", "days are in May", "people live in Oslo")),
    *("写一首关于大海的诗", "写一首关于月亮的诗", "你好", "你是谁"),
]


def groups(prompts: Sequence[str], near: float | None = NEAR) -> list[str]:
    table = to_frame([Conversation(str(i), [prompt], ["Yes"], ["No"]) for i, prompt in enumerate(prompts)])
    return assign_groups(table, near)["group"].to_list()


@pytest.mark.parametrize("kind", PARAPHRASES)
def test_planted_paraphrases_land_in_one_group(kind: str) -> None:
    pair = PARAPHRASES[kind]
    found = groups([DIFFERENT[0], *pair, *DIFFERENT[1:]])
    assert found[1] == found[2] == min(map(group_of, pair))
    assert len({*found}) == len(found) - 1
    off = groups(pair, None)
    assert off == [group_of(prompt) for prompt in pair] and off[0] != off[1]


def test_short_prompts_of_one_template_stay_apart() -> None:
    assert groups(DIFFERENT) == [group_of(prompt) for prompt in DIFFERENT]
    verses = [f"write a poem about {random.Random(i).randbytes(3).hex()}" for i in range(500)]
    assert len({*groups(verses)}) == len(verses)


def test_it_joins_what_comparing_all_pairs_exactly_joins() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefghijklmnop", k=rng.randint(0, 30))) for _ in range(200)]
    for _ in range(300):  # copies of copies with a few words changed: chains, and pairs on both sides of the threshold
        words = rng.choice(texts).split()
        for _ in range(rng.randint(1, 4)):
            words.insert(rng.randint(0, len(words)), "w" + rng.choice("abc"))
        texts.append(" ".join(words))
    cut = [shingles(text) for text in texts]
    expected = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            if jaccard(cut[i], cut[j]) >= NEAR and expected[i] != expected[j]:
                old, new = max(expected[i], expected[j]), min(expected[i], expected[j])
                expected = [new if first == old else first for first in expected]
    assert first_of_each(texts, NEAR) == expected
    assert 200 < len({*expected}) < 400


def test_the_order_of_rows_does_not_matter() -> None:
    rng = random.Random(1)
    prompts = [*DIFFERENT, *(text for pair in PARAPHRASES.values() for text in pair), f"HELLO {SKY}"]
    expected = dict(zip(prompts, groups(prompts), strict=True))
    for _ in range(5):
        rng.shuffle(prompts)
        assert dict(zip(prompts, groups(prompts), strict=True)) == expected


def test_thousands_from_one_template_are_compared_with_few_others_and_still_joined() -> None:
    preamble = "I am a teacher of a small school in the north and look for a gift for my colleague who likes"
    count = 20 * NEIGHBOURS
    assert {*groups([f"{preamble} number {i}" for i in range(count)])} == {
        min(group_of(f"{preamble} number {i}") for i in range(count))
    }


def test_the_joined_prompts_are_told_largest_group_first() -> None:
    prompts = ["Bake bread?", SKY, *PARAPHRASES["a greeting added"], f"Hi. {SKY}", SKY.upper(), f"Hey, {SKY}"]
    table = to_frame([Conversation(str(i), [prompt], ["Yes"], ["No"]) for i, prompt in enumerate(prompts)])
    sky, bread = joined_prompts(assign_groups(table, NEAR))
    assert sky == [SKY, f"Hi. {SKY}", f"Hey, {SKY}"] and bread == [*PARAPHRASES["a greeting added"]]
    assert joined_prompts(assign_groups(table, None)) == []


def test_nothing_is_joined_to_nothing() -> None:
    assert assign_groups(to_frame([]), NEAR).is_empty()
