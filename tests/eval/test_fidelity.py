"""The gate sees what an export lost, and nothing where it lost nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from distill.config import FidelityConfig
from eval.fidelity import Logits, exceeded, fidelity
from eval.metrics import predict

ROWS = 120
LIMITS = FidelityConfig(rows=ROWS, log_loss=0.003, kl=0.002, verdicts=0.015, regret=0.005, flip_rate=0.015, ece=0.02)
RANDOM = np.random.default_rng(0)
LABEL = RANDOM.integers(3, size=ROWS)
VOTES = np.eye(3)[LABEL]
STUDENT: Logits = (2 * VOTES + RANDOM.normal(size=(ROWS, 3)), 2 * VOTES + RANDOM.normal(size=(ROWS, 3)))


def compared(export: Logits) -> dict[str, Any]:
    ids = [f"row {i}" for i in range(ROWS)]
    return fidelity(STUDENT, export, ids, VOTES, [str(i // 2) for i in range(ROWS)], draws=100, bins=10, seed=0)


def test_the_student_itself_loses_nothing() -> None:
    found = compared(STUDENT)
    assert found["log_loss_difference"]["difference"] == 0.0 and found["log_loss_difference"]["ci"] == [0.0, 0.0]
    assert found["mean_kl"] == found["verdicts"] == found["regret"] == 0.0
    assert exceeded(found, LIMITS) == []


def test_figures_are_those_of_their_definitions() -> None:
    export = STUDENT[0] * 0.5, STUDENT[1] + RANDOM.normal(size=(ROWS, 3))
    found, before, after = compared(export), predict(*STUDENT), predict(*export)
    assert found["log_loss"] == pytest.approx(log_loss(LABEL, after))
    difference = log_loss(LABEL, after) - log_loss(LABEL, before)
    assert found["log_loss_difference"]["difference"] == pytest.approx(difference)
    assert found["mean_kl"] == pytest.approx(np.mean(np.sum(before * (np.log(before) - np.log(after)), axis=1)))
    changed = before.argmax(1) != after.argmax(1)
    assert found["verdicts"] == pytest.approx(changed.mean()) and 0 < found["regret"] < changed.mean()
    worst = [row["kl"] for row in found["worst"]]
    assert worst == sorted(worst, reverse=True) and found["worst"][0]["id"].startswith("row ")


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda ab, ba: (ab * 0.1, ba * 0.1), {"log_loss", "kl", "ece"}),
        (lambda ab, ba: (ab[:, [1, 0, 2]], ba[:, [1, 0, 2]]), {"log_loss", "kl", "verdicts"}),
        (lambda ab, ba: ((ab + ba) / 2, (ab + ba) / 2), {"flip_rate"}),
    ],
    ids=["unsure", "sides exchanged", "no position bias"],
)
def test_each_loss_is_named_with_its_limit(change: Any, broken: set[str]) -> None:
    reasons = exceeded(compared(change(*STUDENT)), LIMITS)
    assert {reason.split()[0] for reason in reasons} >= broken
    assert all(f"export.fidelity.{reason.split()[0]}=" in reason for reason in reasons)


def test_a_limit_that_is_null_allows_all() -> None:
    found = compared((STUDENT[0] * 0.1, STUDENT[1] * 0.1))
    free = replace(LIMITS, log_loss=None, kl=None, verdicts=None, regret=None, flip_rate=None, ece=None)
    assert exceeded(found, LIMITS) and not exceeded(found, free)
