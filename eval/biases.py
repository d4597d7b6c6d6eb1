"""The biases that spoil preference judges, each measured against people on the same rows, with an interval.

A judge that prefers long answers is biased only where people do not: what counts is by how much its win rate of the
longer response is above theirs. A response's win rate is the chance that it wins plus half the chance of a tie; it is
the same whichever side is called a. Position bias needs no people: it is the judge against itself in the other order.
Where a teacher's probabilities stand for votes, the teacher stands for people.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy.special import softmax

from core.records import LABELS, Conversation
from eval.conclusions import (
    Bias,
    Claim,
    OneOfSeveral,
    Row,
    WinRates,
    WinRatesByLength,
    bounds,
    conclude,
    conclude_most_striking,
    quantile_bins,
)
from eval.intervals import Estimate, Jackknife
from eval.metrics import flip_rows, log_loss_rows, predict, shares, win_rates
from eval.slices import find_slices
from eval.surface_features import MARKUP, ResponseFeatures, response_features
from eval.truth import VOTES, Truth

RANGES = 5  # of how much longer the longer response is, of about as many rows each
FAMILIES = {
    "gpt": ("gpt-3", "gpt-4", "gpt-5", "gpt-oss", "chatgpt", "text-davinci", "o1", "o3", "o4"),
    "claude": ("claude",),
    "gemini": ("gemini", "gemma", "palm", "bard"),
    "llama": ("llama", "meta-llama", "codellama", "code-llama"),
    "mistral": ("mistral", "mixtral", "codestral", "ministral"),
    "qwen": ("qwen", "qwq"),
    "deepseek": ("deepseek",),
    "command": ("command", "c4ai", "aya"),
    "phi": ("phi-",),
    "yi": ("yi-",),
    "chatglm": ("chatglm", "glm-"),
    "grok": ("grok",),
    "vicuna": ("vicuna",),
    "alpaca": ("alpaca",),
    "koala": ("koala",),
    "wizardlm": ("wizardlm",),
    "tulu": ("tulu",),
    "zephyr": ("zephyr",),
    "openchat": ("openchat",),
    "falcon": ("falcon",),
    "mpt": ("mpt-",),
}


def find_biases(
    conversations: Sequence[Conversation],
    logits_ab: np.ndarray,
    logits_ba: np.ndarray,
    *,
    level: float,
    own: str | None = None,
    truncated: np.ndarray | None = None,
    features: ResponseFeatures | None = None,
    truth: Truth = VOTES,
) -> list[Bias]:
    """What one judge's logits in both orders, twice [n, labels] in the conversations' own a and b, say of its biases.

    position (Zheng et al. 2023, arXiv 2306.05685; Shi et al. 2024, 2406.07791), verbosity (Dubois et al. 2024,
    2404.04475), verbosity_at_ties where people could vote for one, self_enhancement where `own` names the judge's
    family or a model of it (Panickssery et al. 2024, 2404.13076), families, format, refusals, and the slices of
    `find_slices`, truncation where `truncated` (bool [n]) says which prompts were cut. All but position are on rows
    that people voted on.

    A bias is flagged where its interval, which misses the truth with probability `level`, leaves zero out. Of several
    families, kinds of markup or slices it is the most striking, its interval so wide that it answers for all; in their
    table intervals stand alone and `flagged` is Holm's. Biases are not corrected for each other: at level 0.05, one in
    twenty is flagged by chance. A table's rows hold the excess over people's win rate beside both rates, those of
    position the share of verdicts that flip in a range of confidence. What the rows cannot tell has value None.

    `features` is `response_features(conversations)`, which saves time where several judges are asked about. `truth`
    names the votes in sentences.
    """
    assert len(conversations) == len(logits_ab) == len(logits_ba), "logits of other conversations"
    voted = np.array([c.votes is not None for c in conversations], dtype=bool)
    probabilities = predict(logits_ab, logits_ba)
    rated = [c for c in conversations if c.votes is not None]
    votes = shares(np.array([c.votes for c in rated]).reshape(-1, len(LABELS))[:, : logits_ab.shape[1]])
    here = [of.filter(pl.Series(voted)) for of in features or response_features(conversations)]
    against = _AgainstPeople(rated, probabilities[voted], votes, here, level, truth)
    return [
        _position([c.group for c in conversations], logits_ab, logits_ba, level),
        *against.verbosity(),
        *against.families(own),
        against.format(),
        against.refusals(),
        *find_slices(
            rated, probabilities[voted], votes, level=level, truncated=None if truncated is None else truncated[voted]
        ),
    ]


def family(model: str) -> str:
    """The family of a model's name by `FAMILIES`, whatever its case and organisation; an unknown name is its own."""
    name = model.lower().rpartition("/")[2]
    return next((of for of, starts in FAMILIES.items() if name.startswith(starts)), name)


def _position(groups: Sequence[str], logits_ab: np.ndarray, logits_ba: np.ndarray, level: float) -> Bias:
    """How much win rate a response gains by being shown first, which is the same for a and for b of a row."""
    jackknife, everywhere = Jackknife(groups), np.ones(len(groups))
    shift = win_rates(softmax(logits_ab.astype(float), axis=1)) - win_rates(softmax(logits_ba.astype(float), axis=1))
    flips = flip_rows(logits_ab, logits_ba)
    tenth = (predict(logits_ab, logits_ba).max(axis=1) * 10).astype(int).clip(max=9)
    table = [
        Row(
            x=f"{at}0% to {at + 1}0%",
            count=int((tenth == at).sum()),
            **bounds(jackknife.mean(flips, tenth == at), level, share=True),
        )
        for at in np.unique(tenth)
    ]
    rate = jackknife.mean(flips, everywhere)
    remark = ""
    if rate is not None:
        low, high = rate.share_interval(level)
        remark = f" The verdict changes with the order in {rate.value:.1%} of conversations ({low:.1%} to {high:.1%})."
    claim = Claim(
        "A response's win rate when shown first",
        "the same response's when shown second",
        above="the judge favours what it is shown first",
        below="the judge favours what it is shown last",
    )
    estimate = jackknife.mean(shift, everywhere)
    return conclude("position", "win rate", estimate, claim, table, level=level, remark=remark)


class _AgainstPeople:
    """A judge and the people who voted on the same rows, or whoever a `truth` names in their place.

    A `side` says which response of a row a question is about: 1 for a, -1 for b, 0 where it is about neither.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        probabilities: np.ndarray,
        votes: np.ndarray,
        features: Sequence[pl.DataFrame],
        level: float,
        truth: Truth,
    ):
        self.conversations, self.features, self.level, self.truth = conversations, features, level, truth
        self.probabilities, self.votes = probabilities, votes
        self.judge, self.people = win_rates(probabilities), win_rates(votes)
        self.jackknife = Jackknife([c.group for c in conversations])

    def verbosity(self) -> list[Bias]:
        """Whether it wants length more than people do: of all pairs, and of those that people find equally good."""
        length_a, length_b = (1 + of["characters"].to_numpy() for of in self.features)
        side, ratio = np.sign(length_a - length_b), np.maximum(length_a, length_b) / np.minimum(length_a, length_b)
        claim = Claim(
            "The judge's win rate of the longer response",
            self.truth.whose,
            above="it favours length",
            below="it is biased against length",
        )
        table = []
        losses = log_loss_rows(self.probabilities, self.votes)
        for rows in quantile_bins(ratio[side != 0], RANGES):
            inside = np.zeros(len(side), dtype=bool)
            inside[side != 0] = rows
            label = f"{ratio[inside].min():.2f} to {ratio[inside].max():.2f} times as long"
            rates = vars(self._win_rates(label, side * inside))
            table.append(WinRatesByLength(**rates, log_loss=float(losses[inside].mean())))
        found = conclude("verbosity", "win rate", self._excess(side), claim, table, level=self.level)
        return [found, self._verbosity_at_ties(side)] if self.votes.shape[1] == len(LABELS) else [found]

    def _verbosity_at_ties(self, side: np.ndarray) -> Bias:
        """The judge's lean to the longer response where people voted a tie.

        A single tie does not make two responses equal: a judge that knows the votes' true distribution leans there. So
        people's own lean is taken off, on pairs weighted by how likely the judge thinks a tie; for such a judge, the
        two are equal.
        """
        judge, people = ((2 * of - 1) * side for of in (self.judge, self.people))
        ties, likely = self.votes[:, 2] * abs(side), self.probabilities[:, 2] * abs(side)
        claim = Claim(
            f"Where {self.truth.tie}, the judge's lean to the longer response",
            f"{self.truth.whose} own on pairs that it finds as close",
            above="quality held equal, it favours length",
            below="quality held equal, it is biased against length",
        )
        leans = {
            f"the judge, where {self.truth.tie}": (judge, ties),
            f"{self.truth.who}, where the judge expects ties": (people, likely),
        }
        table = [
            Row(x=x, count=int(np.count_nonzero(of[1])), **bounds(self.jackknife.mean(*of), self.level))
            for x, of in leans.items()
        ]
        estimate = self.jackknife.difference(*leans.values())
        return conclude("verbosity_at_ties", "probability", estimate, claim, table, level=self.level)

    def families(self, own: str | None) -> list[Bias]:
        """Whether it wants the responses of a model family more than people do: of its own, and of any other."""
        wrote = np.array(
            [[family(m) if m else "" for m in (c.model_a, c.model_b)] for c in self.conversations], dtype=object
        ).reshape(-1, 2)
        sides = {
            of: (wrote[:, 0] == of).astype(int) - (wrote[:, 1] == of) for of in sorted({*wrote.ravel().tolist()} - {""})
        }
        found = []
        if own is not None:
            side = sides.pop(family(own), np.zeros(len(wrote), dtype=int))
            claim = Claim(
                f"The judge's win rate of responses by {family(own)}, its own family,",
                self.truth.whose,
                above="it favours its own family",
                below="it is biased against its own family",
            )
            table = [self._win_rates(family(own), side)]
            found.append(conclude("self_enhancement", "win rate", self._excess(side), claim, table, level=self.level))
        return [*found, self._farthest("families", "responses by {}", sides, whole="any family")]

    def format(self) -> Bias:
        """Whether it wants a kind of markup more than people do."""
        of_a, of_b = self.features
        sides = {name: np.sign((of_a[name] - of_b[name]).to_numpy()) for name in MARKUP}
        return self._farthest("format", "the response with more {}", sides, whole="markup")

    def refusals(self) -> Bias:
        """Whether it wants the response that refuses, where the other does not, more than people do."""
        of_a, of_b = self.features
        side = (of_a["refuses"] - of_b["refuses"]).to_numpy()
        claim = Claim(
            "The judge's win rate of a response that refuses, against one that does not,",
            self.truth.whose,
            above="it favours refusals",
            below="it is biased against refusals",
        )
        table = [self._win_rates("one response refuses", side)]
        return conclude("refusals", "win rate", self._excess(side), claim, table, level=self.level)

    def _farthest(self, name: str, subject: str, sides: Mapping[str, np.ndarray], whole: str) -> Bias:
        """The side on which judge and people differ most; all of them in the table."""
        claim = Claim(
            f"The judge's win rate of {subject}",
            self.truth.whose,
            above="it favours them",
            below="it is biased against them",
        )
        excess = {x: self._excess(side) for x, side in sides.items()}
        rows = {x: OneOfSeveral(**vars(self._win_rates(x, side))) for x, side in sides.items() if side.any()}
        return conclude_most_striking(name, "win rate", excess, claim, rows, level=self.level, whole=whole)

    def _excess(self, side: np.ndarray) -> Estimate | None:
        """By how much the judge's win rate of a side is above people's."""
        return self.jackknife.mean((self.judge - self.people) * side, abs(side))

    def _win_rates(self, label: str, side: np.ndarray) -> WinRates:
        about = side != 0
        judge, people = (
            float((0.5 + (of - 0.5) * side)[about].mean()) if about.any() else None for of in (self.judge, self.people)
        )
        excess = bounds(self._excess(side), self.level)
        return WinRates(x=label, count=int(about.sum()), judge=judge, people=people, **excess)
