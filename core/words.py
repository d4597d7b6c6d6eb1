"""How many words a text has, also where its script puts no spaces between them."""

import re

SOUTHEAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and ideographs
UNSPACED = SOUTHEAST_ASIAN + EAST_ASIAN
# Each counts: 々〆〇, bopomofo and half-width katakana, too. Near-duplicates are told without these.
SINGLE = EAST_ASIAN + "\u3005-\u3007\u3100-\u312f\u31a0-\u31bf\uff66-\uff9f"
# Of any width
SYMBOLS = r"!-/:-@\[-`{-~\u2000-\u206f\u3000-\u3004\u3008-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
LETTERS = 5  # of Thai and its neighbours, marks among them: about a word
WITHOUT_SPACES = re.compile(f"[{SOUTHEAST_ASIAN}{SINGLE}]")
OTHERS = f"[^{SOUTHEAST_ASIAN}{SINGLE}{SYMBOLS}]+"
WORD = re.compile(
    rf"[{SINGLE}]|[{SOUTHEAST_ASIAN}]{{1,{LETTERS}}}|{OTHERS}(?:(?<!\d)['\u2019](?!\d){OTHERS})*"  # don't is one
)


def count_words(text: str) -> int:
    """How many words a text has: what stands between spaces counts once, but for characters of scripts without spaces.

    Where it holds some of these, each ideograph or kana counts, as word processors have it, of Thai and its neighbours
    every `LETTERS` characters, and any run of other letters, an apostrophe within them included; punctuation does not.
    """
    words = text.split()
    if not WITHOUT_SPACES.search(text):
        return len(words)
    return sum(len(WORD.findall(word)) if WITHOUT_SPACES.search(word) else 1 for word in words)
