"""Verdicts of a judge that learned from data without ties keep their form, and say nothing of ties."""

import numpy as np
import pytest

from core.labels import WITHOUT_TIES
from core.prompts import Rendered
from deploy.serving.schemas import Verdict
from deploy.serving.verdicts import result
from eval.recalibration import IDENTITY

PROMPT = Rendered("x", "ab", [1, 2, 3], False)


def verdict(logits: list[list[float]], labels: tuple[str, ...] = WITHOUT_TIES) -> Verdict:
    found = result("x", PROMPT, ("ab", "ba"), np.array(logits), IDENTITY, labels)
    assert isinstance(found, Verdict)
    return found


def test_a_tie_has_no_probability_whatever_its_logit() -> None:
    found = verdict([[1.0, 0.0, 90.0], [2.0, 0.0, -90.0]])
    a = 1 / (1 + np.exp(-1.5))
    assert [found.probabilities.a, found.probabilities.b] == pytest.approx([a, 1 - a])
    assert found.probabilities.tie == found.by_order["ab"].tie == 0
    assert found.verdict == "a" and found.flips is False


def test_only_equal_chances_are_a_tie() -> None:
    assert verdict([[1.0, 0.0, 9.0], [0.0, 1.0, 9.0]]).verdict == "tie"
    assert verdict([[1.0, 0.0, 9.0], [0.0, 1.1, 9.0]]).verdict == "b"
