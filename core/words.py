"""How many words a text has, also where its script puts no spaces between them."""

import re

SOUTHEAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and ideographs
UNSPACED = SOUTHEAST_ASIAN + EAST_ASIAN
SYMBOLS = r"!-/:-@\[-`{-~\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"  # of any width
LETTERS = 5  # of Thai and its neighbours, marks among them: about a word
WITHOUT_SPACES = re.compile(f"[{UNSPACED}]")
WORD = re.compile(f"[{EAST_ASIAN}]|[{SOUTHEAST_ASIAN}]{{1,{LETTERS}}}|[^{UNSPACED}{SYMBOLS}]+")


def count_words(text: str) -> int:
    """How many words a text has: what stands between spaces counts once, but for characters of scripts without spaces.

    Where it holds some of these, each ideograph or kana counts, as word processors have it, of Thai and its neighbours
    every `LETTERS` characters, and any run of other letters; punctuation does not.
    """
    words = text.split()
    if not WITHOUT_SPACES.search(text):
        return len(words)
    return sum(len(WORD.findall(word)) if WITHOUT_SPACES.search(word) else 1 for word in words)
