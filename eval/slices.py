"""How a judge does on slices of the data: log loss and accuracy by language, turns, truncation and length of prompt.

A slice on which the judge does worse is not yet its fault, as people may agree less there. `surprise`, the log loss
beyond the entropy that the judge itself expected, tells the two apart: it is zero wherever the judge is calibrated.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy.special import entr

from core.records import Conversation
from eval.conclusions import Bias, Claim, Slice, bounds, conclude_most_striking, quantile_bins
from eval.intervals import Estimate, Jackknife
from eval.metrics import accuracy_rows, log_loss_rows

SEEN = 2000  # characters of a prompt that tell its language
ENGLISH = (
    "the|and|is|are|of|to|for|with|that|this|what|how|why|who|when|which|you|your|my|it|can|could|would|should|do|does|"
    "write|give|tell|make|explain|list|from|not|be|have|has|there|about|or|if|i"
)
OTHERS = (
    "le|la|les|des|une|est|et|que|qui|dans|pour|quel|quelle|je|comment|el|los|las|por|para|una|del|cómo|qué|en|como|"
    "il|che|di|è|gli|della|sono|não|um|uma|os|é|você|da|der|das|und|ist|nicht|ein|eine|wie|ich|mit|von|het|een|van|niet|"
    "ik|hoe|jest|nie|się|jak|w|och|att|är|det|ve|bir|bu|için|yang|dan|apa|của|là|và"
)
WAYS = {"language": "language", "rounds": "turns", "prompt_length": "prompt length", "truncation": "truncation"}
LENGTHS = 4  # ranges of prompt length, of about as many rows


def find_slices(
    conversations: Sequence[Conversation],
    probabilities: np.ndarray,
    votes: np.ndarray,
    *,
    level: float,
    truncated: np.ndarray | None,
) -> list[Bias]:
    """One `Bias` a way to slice: how far the most striking slice's log loss is from that of all other rows.

    Takes rows that people voted on: `probabilities` and `votes` [n, 3], `truncated` bool [n] (None: not known, left
    out). A table has one `Slice` a row.
    """
    losses = _Losses(conversations, probabilities, votes, level)
    prompts = pl.Series(["\n".join(c.prompt) for c in conversations], dtype=pl.String)
    turns, english = np.array([len(c.prompt) for c in conversations], dtype=int), is_english(prompts).to_numpy()
    ways = {
        "language": {"English prompts": english, "prompts in other languages": ~english},
        "rounds": {
            "conversations of one turn": turns == 1,
            "conversations of two turns": turns == 2,
            "conversations of three turns or more": turns > 2,
        },
        "prompt_length": _by_length(prompts.str.len_chars().to_numpy()),
    }
    if truncated is not None:
        ways["truncation"] = {"whole conversations": ~truncated, "truncated conversations": truncated}
    return [losses.compare(name, slices) for name, slices in ways.items()]


def is_english(texts: pl.Series) -> pl.Series:
    """Whether each text is in English, as far as its script and commonest words tell: bool, for slices alone.

    A text is not where most of its letters are not Latin, or where words such as "der", "que" and "il" outnumber
    "the", "what" and "you". A text without any of them, such as code, counts as English.
    """
    start = texts.str.slice(0, SEEN).str
    latin, letters = start.count_matches(r"\p{Latin}"), start.count_matches(r"\p{L}")
    english, others = (start.count_matches(rf"(?i)\b(?:{words})\b") for words in (ENGLISH, OTHERS))
    return (2 * latin >= letters) & (english >= others)


def _by_length(characters: np.ndarray) -> dict[str, np.ndarray]:
    return {
        f"prompts of {characters[rows].min()} to {characters[rows].max()} characters": rows
        for rows in quantile_bins(characters, LENGTHS)
    }


class _Losses:
    """What a judge loses on each row, to be compared between slices."""

    def __init__(
        self, conversations: Sequence[Conversation], probabilities: np.ndarray, votes: np.ndarray, level: float
    ):
        self.jackknife, self.level = Jackknife([c.group for c in conversations]), level
        self.losses = log_loss_rows(probabilities, votes)
        self.accuracies = accuracy_rows(probabilities, votes)
        self.surprises = self.losses - entr(probabilities).sum(axis=1)

    def compare(self, name: str, slices: Mapping[str, np.ndarray]) -> Bias:
        """Log loss on each slice, given as bool [n], against the rest. Of two slices, the first is the rest."""
        filled = {label: inside for label, inside in slices.items() if inside.any()}
        compared = [*filled][len(filled) <= 2 :]
        gaps = {x: self.jackknife.difference((self.losses, filled[x]), (self.losses, ~filled[x])) for x in compared}
        claim = Claim(
            "Log loss on {}",
            "that on the rest",
            above="the judge does worse there",
            below="the judge does better there",
        )
        rows = {x: self._slice(x, inside, gaps.get(x)) for x, inside in filled.items()}
        return conclude_most_striking(
            name, "nats", gaps, claim, rows, level=self.level, whole=f"a slice by {WAYS[name]}"
        )

    def _slice(self, label: str, inside: np.ndarray, gap: Estimate | None) -> Slice:
        loss, accuracy, surprise = (
            self.jackknife.mean(of, inside) for of in (self.losses, self.accuracies, self.surprises)
        )
        return Slice(
            x=label,
            count=int(inside.sum()),
            flagged=False,  # yet
            **bounds(loss, self.level)
            | bounds(accuracy, self.level, "accuracy", share=True)
            | bounds(surprise, self.level, "surprise")
            | bounds(gap, self.level, "difference"),
        )
