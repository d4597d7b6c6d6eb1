"""Surface features of responses: what can be counted without reading them, such as length, markup and refusals."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from core.data.table import to_frame
from core.records import ORDERS, Conversation, Order

LETTER = r"[\p{L}\p{N}_]"
WORD = f"{LETTER}+"
REFUSAL = (
    r"(?i)\bI(?:.m| am) sorry|\bI apologi[sz]e|\bas an AI\b|\bas a language model|\bI can(?:no|.)t\b"  # any apostrophe
)
COUNTED = {
    "list_items": r"(?m)^\s*(?:[-*+•]|\d+[.)])\s",
    "code_blocks": r"(?m)^\s*```[^`]*$",  # fences: two a block
    "headings": r"(?m)^#{1,6}\s",
    "bold": r"\*\*[^*\n]+\*\*",
    "digits": r"\p{Nd}",
    "question_marks": r"[?\x{FF1F}]",
    "refusals": REFUSAL,
}
MARKUP = {"bold": "bold", "headings": "headings", "lists": "list_items", "code": "code_blocks"}  # names in COUNTED
ResponseFeatures = tuple[pl.DataFrame, pl.DataFrame]  # of the responses a, and of the responses b


def surface_features(conversations: Sequence[Conversation]) -> dict[Order, np.ndarray]:
    """Surface features of the two responses, as shown in each order: float64 [n, features].

    Each property of a response appears four times, every time on the scale log(1 + x), because counts have long tails
    and one long answer would rule a linear model: of the first, of the second, their difference with its sign, and
    their ratio. The number of turns, the length of the prompt and whether the responses are identical belong to the
    pair.
    """
    texts = to_frame(conversations).select(pl.col("prompt", "response_a", "response_b").list.join("\n\n"))
    sides = {side: texts.select(_properties(f"response_{side}")).to_numpy() for side in "ab"}
    identical = texts.select(pl.col("response_a") == pl.col("response_b")).to_numpy()
    prompts = texts["prompt"].str.len_chars().to_list()
    extent = [(len(c.prompt), characters) for c, characters in zip(conversations, prompts, strict=True)]
    pair = np.column_stack([np.log1p(extent), identical])
    shown = {}
    for order in ORDERS:
        first, second = (sides[side] for side in order)
        gap = first - second
        log_first, log_second = np.log1p(first), np.log1p(second)
        shown[order] = np.column_stack(
            [log_first, log_second, np.sign(gap) * np.log1p(np.abs(gap)), log_first - log_second, pair]
        )
    return shown


def _properties(column: str) -> list[pl.Expr]:
    """The properties of one response that `surface_features` compares, all of them zero or above."""
    text = pl.col(column)
    characters = text.str.len_chars()
    words = text.str.to_lowercase().str.extract_all(WORD)
    asked = pl.col("prompt").str.to_lowercase().str.extract_all(WORD)
    at_least_one = words.list.len().clip(1)
    properties = {
        "characters": characters,
        "words": words.list.len(),
        "lines": text.str.count_matches("\n"),
        **{name: text.str.count_matches(pattern) for name, pattern in COUNTED.items()},
        "punctuation_share": text.str.count_matches(r"\p{P}") / characters.clip(1),
        "prompt_overlap": words.list.set_intersection(asked).list.len() / words.list.n_unique().clip(1),
        "word_length": text.str.count_matches(LETTER) / at_least_one,
        "type_token_ratio": words.list.n_unique() / at_least_one,
    }
    return [value.cast(pl.Float64).alias(name) for name, value in properties.items()]


def response_features(conversations: Sequence[Conversation]) -> ResponseFeatures:
    """The surface features known to bias judges, of each response a and of each b: one row a conversation."""
    a, b = ([getattr(c, f"response_{side}") for c in conversations] for side in "ab")
    return _features(a), _features(b)


def _features(responses: Sequence[Sequence[str]]) -> pl.DataFrame:
    """Of each response its length in characters, its markup, and whether it refuses (0 or 1)."""
    text = pl.Series("text", ["\n\n".join(turns) for turns in responses], dtype=pl.String).str
    return pl.DataFrame(
        {
            "characters": text.len_chars().cast(pl.Int64),
            "refuses": text.contains(REFUSAL).cast(pl.Int64),
            **{name: text.count_matches(COUNTED[pattern]).cast(pl.Int64) for name, pattern in MARKUP.items()},
        }
    )
