"""Pointwise judges: each response alone gets a reward, and two rewards amount to logits of a, b and tie (`Choice`).

How they do is learnt with the judge. It stands in the config.json of its model, a plain sequence classifier with one
output, and in `judge.json`.
A scorer of such a model is wrapped once, where it is opened, and answers like that of any judge; both orders of a
conversation have the same two rewards, so no verdict depends on the order.
"""

import hashlib
import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.labels import NO_TIE
from core.prompts import ResponseIds
from core.records import LABELS
from core.scoring import Scorer

OUTPUTS = ("reward",)  # of a pointwise judge's classifier, as `LABELS` are a pairwise one's
KEY = "choice"  # in config.json and judge.json
FORMER_KEY = "pointwise"  # of judges of an earlier version, which knew no `Choice.height`
JUDGE = "judge.json"
KNOWN = 100_000  # rewards that a stream remembers: one that never ends must not grow


@dataclass(frozen=True)
class Choice:
    """P(a), P(b) and P(tie) in proportion to exp(s/2), exp(-s/2) and exp(log_tie - height * m), s = scale * (r_a - r_b)
    and m = scale * (r_a + r_b) / 2.

    What two rewards differ by tells who wins; how high both are may tell how likely a tie is, which differs by prompt.
    A `height` of 0 is Davidson's model (1970, "On Extending the Bradley-Terry Model to Accommodate Ties"), of 1 Luce's
    choice (1959, "Individual Choice Behavior") among three of which a tie is one. `log_tie` is `NO_TIE` where nobody
    could vote for one; the height of rewards then tells nothing. Beyond 1 or -1 a height can take from P(a) what a
    higher r_a gives; which of a and b is likelier it never changes.
    """

    scale: float
    log_tie: float
    height: float = 0.0

    def logits(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """float64 [n, 3] for rewards of the responses a and b, each [n]; those of a and b add up to zero."""
        half, mean = self.scale * (first - second) / 2, self.scale * (first + second) / 2
        tie = np.full(len(half), NO_TIE) if self.log_tie == NO_TIE else self.log_tie - self.height * mean
        return np.column_stack([half, -half, tie])


def outputs_of(pointwise: bool) -> tuple[str, ...]:
    """What the outputs of a judge's classifier are called."""
    return OUTPUTS if pointwise else LABELS


def noted(choice: Choice) -> dict[str, Any]:
    """What config.json and judge.json say of a pointwise judge; `log_tie` is null where nobody could vote for a tie."""
    log_tie = None if choice.log_tie == NO_TIE else choice.log_tie
    return {KEY: {"scale": choice.scale, "log_tie": log_tie, "height": choice.height}}


def choice_of(note: Mapping[str, Any]) -> Choice | None:
    """How a judge's rewards become logits, from what `noted` wrote, among other keys; None where the judge is pairwise.

    That of an earlier version may stand beside it, in the config.json of a judge that went on from an older one.
    """
    if (found := note.get(KEY, note.get(FORMER_KEY))) is None:
        return None
    return Choice(found["scale"], NO_TIE if found["log_tie"] is None else found["log_tie"], found.get("height", 0.0))


def choice_in(model: Path) -> Choice | None:
    """That of a model's folder; None of one that has none, or no config.json."""
    path = model / "config.json"
    return choice_of(json.loads(path.read_text())) if path.exists() else None


def check_kind(model: Path, pointwise: bool) -> None:
    """Raise `UserError` for a judge of the other kind than the prompts that it is to be shown."""
    is_pointwise = choice_in(model) is not None
    if is_pointwise and not pointwise:
        raise UserError(
            f"{model} is a pointwise judge, which reads one response, and prompt.template shows both: give prompt="
            "pointwise, or the prompt that it was trained on"
        )
    if pointwise and not is_pointwise:
        raise UserError(
            f"{model} is no pointwise judge ({KEY} in config.json), and prompt.template shows one response alone: give "
            "a prompt that shows both"
        )


class PointwiseScorer:
    """Logits of a pointwise judge, from a scorer that gives the reward of one response.

    Equal prompts are computed once in each stream, as far as it remembers (`KNOWN`): both orders of a conversation
    share theirs, and conversations share a response. What is spared counts as cached.
    """

    def __init__(self, rewards: Scorer, choice: Choice):
        self.rewards, self.choice = rewards, choice
        self._spared = 0  # tokens of the prompts less those that were computed

    @property
    def tokens_cached(self) -> int:
        return self.rewards.tokens_cached + max(0, self._spared)

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """As `core.scoring.Scorer` says, of prompts that the renderer made for one response each (`ResponseIds`).

        One that knows no other response gets its reward, float32 [1].
        """
        known: dict[bytes, float] = {}  # the latest, by prompt
        asked: dict[int, bytes] = {}  # by position in the inner stream
        pending: dict[bytes, list[int]] = {}  # the prompts that wait for a reward
        waiting: dict[int, tuple[list[bytes], dict[bytes, float]]] = {}  # what a prompt is made of, and is there of it
        ready: deque[int] = deque()

        def distinct() -> Iterator[Sequence[int]]:
            places = count()
            for position, prompt in enumerate(prompts):
                assert isinstance(prompt, ResponseIds), "a pointwise judge is asked with its own renderer's prompts"
                shown = [prompt] if prompt.other is None else [prompt, prompt.other]
                keys = [*map(_digest, shown)]
                there = {key: known[key] for key in keys if key in known}
                waiting[position] = keys, there
                self._spared += len(prompt)
                if len(there) == len({*keys}):
                    ready.append(position)
                for key, ids in dict(zip(keys, shown, strict=True)).items():
                    if key in pending:
                        pending[key].append(position)
                    elif key not in there:
                        asked[next(places)], pending[key] = key, [position]
                        self._spared -= len(ids)
                        yield ids

        def finished() -> Iterator[tuple[int, np.ndarray]]:
            while ready:
                position = ready.popleft()
                keys, there = waiting.pop(position)
                yield position, self._output(*(there[key] for key in keys))

        for place, output in self.rewards.stream(distinct()):
            key = asked.pop(place)
            known[key] = _reward(output)
            if len(known) > KNOWN:
                del known[next(iter(known))]
            for position in pending.pop(key):
                keys, there = waiting[position]
                there[key] = known[key]
                if len(there) == len({*keys}):
                    ready.append(position)
            yield from finished()
        yield from finished()

    def _output(self, own: float, other: float | None = None) -> np.ndarray:
        if other is None:
            return np.array([own], np.float32)
        return self.choice.logits(np.array([own]), np.array([other]))[0].astype(np.float32)


def _digest(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16).digest()


def _reward(output: np.ndarray) -> float:
    if output.shape != (1,):
        raise UserError(f"a pointwise judge has one output, its scorer gave {output.shape[-1]}: score with its export")
    return float(output[0])
