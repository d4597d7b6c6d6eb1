"""How a judge does on slices of the data: by language, turns, truncation, length of prompt, and each tag of the data.

A slice on which the judge does worse is not yet its fault, as people may agree less there. `surprise`, the log loss
beyond the entropy that the judge itself expected, tells the two apart: it is zero wherever the judge is calibrated.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import entr

from core.records import BOTH_BAD, LABELS, Conversation
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
LENGTHS = 4  # ranges of prompt length, of about as many rows
VALUES, FEWEST = 8, 30  # of a tag: how many values are slices, the others being one, and of how many conversations
LONGEST = 60  # characters of a tag's value that are shown
TAG = "tag_"  # begins the name of a way by tag
LANGUAGE = "language"  # this tag says what is guessed without it


@dataclass(frozen=True)
class Way:
    """A way to slice, and what reports call it: its `slices`, bool [n] each, are compared with each other."""

    name: str
    noun: str
    slices: Mapping[str, np.ndarray]


def find_slices(
    conversations: Sequence[Conversation],
    probabilities: np.ndarray,
    votes: np.ndarray,
    *,
    level: float,
    truncated: np.ndarray | None,
) -> list[Bias]:
    """One `Bias` a way to slice: how far the most striking slice's log loss is from that of the other slices' rows.

    Takes rows that people voted on: `probabilities` and `votes` [n, labels], `truncated` bool [n] (None: not known,
    left out). A table has one `Slice` a row. There may be any number of tags, so all of them share one error rate:
    the chance that any slice by tag is flagged without cause is at most `level`. Which slices there are never depends
    on what the judge said.
    """
    losses, tagged = _Losses(conversations, probabilities, votes, level), by_tag(conversations, votes)
    known = {way.name for way in tagged}
    plain = [way for way in by_shape(conversations, truncated) if way.name not in known]
    return [
        *(losses.compare(way) for way in plain),
        *(losses.compare(way, among=len(tagged)) for way in tagged),
    ]


def by_shape(conversations: Sequence[Conversation], truncated: np.ndarray | None) -> list[Way]:
    """The ways to slice any conversations: by their language as far as words tell, and by their size."""
    prompts = pl.Series(["\n".join(c.prompt) for c in conversations], dtype=pl.String)
    turns, english = np.array([len(c.prompt) for c in conversations], dtype=int), is_english(prompts).to_numpy()
    by_turns = {
        "conversations of one turn": turns == 1,
        "conversations of two turns": turns == 2,
        "conversations of three turns or more": turns > 2,
    }
    ways = [
        Way(LANGUAGE, "language", {"English prompts": english, "prompts in other languages": ~english}),
        Way("rounds", "turns", by_turns),
        Way("prompt_length", "prompt length", _by_length(prompts.str.len_chars().to_numpy())),
    ]
    if truncated is not None:
        cut = {"whole conversations": ~truncated, "truncated conversations": truncated}
        ways.append(Way("truncation", "truncation", cut))
    return ways


def by_tag(conversations: Sequence[Conversation], votes: np.ndarray) -> list[Way]:
    """A way for each tag of which two values, or one and all others, have `FEWEST` conversations.

    The largest values are slices, the others are one. Rows without the tag are in none. Of ties (`votes` [n, labels])
    those between bad responses are compared with the other ties alone, since any judge loses more on ties than on
    other rows.
    """
    names = sorted({name for c in conversations for name in c.tags} - {*BOTH_BAD})
    ways = [_by_value(name, [c.tags.get(name) for c in conversations]) for name in names]
    if votes.shape[1] == len(LABELS):
        bad = np.array([c.tags.items() >= BOTH_BAD.items() for c in conversations], dtype=bool)
        tied = votes.argmax(axis=1) == LABELS.index("tie")
        ties = {"other ties": tied & ~bad, "ties of two bad responses": tied & bad}
        ways.append(Way("both_bad", "kind of tie", ties))
    return [way for way in ways if sum(inside.sum() >= FEWEST for inside in way.slices.values()) > 1]


def _by_value(tag: str, values: Sequence[str | None]) -> Way:
    counts = Counter(value for value in values if value is not None)
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    slices = [value for value in ordered[:VALUES] if counts[value] >= FEWEST]
    place = np.array([slices.index(v) if v in slices else -1 if v is None else len(slices) for v in values], dtype=int)
    labels = [f"{value[:LONGEST]} ({tag})" for value in slices] + [f"all other values ({tag})"]
    noun = tag.replace("_", " ")
    return Way(LANGUAGE if tag == LANGUAGE else TAG + tag, noun, {x: place == i for i, x in enumerate(labels)})


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

    def compare(self, way: Way, among: int = 1) -> Bias:
        """Log loss on each slice against the others of a way, one `among` several that share the error rate.

        Of two slices, the first is the rest.
        """
        filled = {label: inside for label, inside in way.slices.items() if inside.any()}
        compared, there = [*filled][len(filled) <= 2 :], np.any([*filled.values()], axis=0)
        gaps = {
            x: self.jackknife.difference((self.losses, filled[x]), (self.losses, there & ~filled[x])) for x in compared
        }
        claim = Claim(
            "Log loss on {}",
            "that on the rest",
            above="the judge does worse there",
            below="the judge does better there",
        )
        rows = {x: self._slice(x, inside, gaps.get(x)) for x, inside in filled.items()}
        return conclude_most_striking(
            way.name, "nats", gaps, claim, rows, level=self.level, whole=f"a slice by {way.noun}", families=among
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
