"""Words are counted by the spaces between them, and where a script has none by its characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.words import count_words


@given(st.text(st.characters(max_codepoint=0x2FF) | st.sampled_from("ЖяΩא한국어हिन्दी \n\t")))
def test_scripts_with_spaces_are_counted_by_these(text: str) -> None:
    assert count_words(text) == len(text.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("你好，世界。", 4),
        ("你好 世界 - a well-known phrase", 8),
        ("これはペンです", 7),
        ("GPT-4は2023年に発表された", 11),  # GPT, 4 and 2023 among eight others
        ("สวัสดีครับ ผมชื่อสมชาย", 2 + 3),  # ten letters and marks, and twelve
        ("한국어는 띄어쓰기를 한다", 3),
        ("人々の〆切は二〇二三年", 11),
        ("ﾃｽﾄです", 5),
        ("ｶﾀｶﾅ", 4),
        ("ㄅㄆ注音ㆠ", 5),
        ("don't你", 2),
        ("don’t你 'quoted'词", 4),
        ("rock'n'roll' 你", 2),
        ("5'6你", 3),  # feet and inches
    ],
)
def test_scripts_without_spaces_are_counted_by_their_characters(text: str, words: int) -> None:
    assert count_words(text) == words
