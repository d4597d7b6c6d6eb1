"""Pointwise judges: each response alone gets a reward, and two rewards amount to logits of a, b and tie.

s = scale * (r_a - r_b), and the logits are Davidson's (`core.bradley_terry`). `scale` and `log_tie` are learnt with the
judge. They stand in the config.json of its model, a plain sequence classifier with one output, and in `judge.json`.
A scorer of such a model is wrapped once, where it is opened, and answers like that of any judge; both orders of a
conversation have the same two rewards, so no verdict depends on the order.
"""

import hashlib
import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from core.bradley_terry import BradleyTerry
from core.errors import UserError
from core.labels import NO_TIE
from core.prompts import ResponseIds
from core.records import LABELS
from core.scoring import Scorer

OUTPUTS = ("reward",)  # of a pointwise judge's classifier, as `LABELS` are a pairwise one's
KEY = "pointwise"  # in config.json and judge.json
JUDGE = "judge.json"
KNOWN = 100_000  # rewards that a stream remembers: one that never ends must not grow


def outputs_of(pointwise: bool) -> tuple[str, ...]:
    """What the outputs of a judge's classifier are called."""
    return OUTPUTS if pointwise else LABELS


def noted(davidson: BradleyTerry) -> dict[str, Any]:
    """What config.json and judge.json say of a pointwise judge; `log_tie` is null where nobody could vote for a tie."""
    (scale,) = davidson.weights.tolist()
    return {KEY: {"scale": scale, "log_tie": None if davidson.log_tie == NO_TIE else davidson.log_tie}}


def davidson_of(note: Mapping[str, Any]) -> BradleyTerry | None:
    """The scale and the tie constant by which a judge's rewards become logits, from what `noted` wrote, among other
    keys; None where the judge is pairwise."""
    if (found := note.get(KEY)) is None:
        return None
    return BradleyTerry(np.array([found["scale"]]), NO_TIE if found["log_tie"] is None else found["log_tie"])


def davidson_in(model: Path) -> BradleyTerry | None:
    """That of a model's folder; None of one that has none, or no config.json."""
    path = model / "config.json"
    return davidson_of(json.loads(path.read_text())) if path.exists() else None


def check_kind(model: Path, pointwise: bool) -> None:
    """Raise `UserError` for a judge of the other kind than the prompts that it is to be shown."""
    is_pointwise = davidson_in(model) is not None
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

    def __init__(self, rewards: Scorer, davidson: BradleyTerry):
        self.rewards, self.davidson = rewards, davidson
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
        return self.davidson.logits(np.array([[own - other]]))[0].astype(np.float32)


def _digest(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16).digest()


def _reward(output: np.ndarray) -> float:
    if output.shape != (1,):
        raise UserError(f"a pointwise judge has one output, its scorer gave {output.shape[-1]}: score with its export")
    return float(output[0])
