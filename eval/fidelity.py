"""What an export lost: its predictions beside the unquantised student's on the same held-out conversations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.config import FidelityConfig
from distill.records import LABELS
from eval.metrics import Groups, expected_calibration_error, flip_rate, log_loss_rows, paired_difference, predict

WORST = 10
ROUNDING = 1e-9  # 3 of 200 rows are not more than 0.015
Logits = tuple[np.ndarray, np.ndarray]  # of order ab and of order ba, each [n, 3] in the conversation's own a and b


def fidelity(
    student: Logits,
    export: Logits,
    ids: Sequence[str],
    votes: np.ndarray,
    groups: Groups,
    *,
    draws: int,
    bins: int,
    seed: int,
) -> dict[str, Any]:
    """Both judges' figures on the same rows, and how far apart they are, as `fidelity.json` holds it.

    `log_loss_difference`: the export's minus the student's, in nats, paired, with its 95% interval. `mean_kl`: of
    KL(student || export), in nats. `verdicts`: share of conversations whose most likely label is another one;
    `regret`: the probability, by the student, that following the export's verdicts gives away, which near ties do not
    inflate. `flip_rate`: share of verdicts that depend on the order. `worst`: the conversations that moved most.
    """
    before, after = predict(*student), predict(*export)
    kl = (before * np.log(before / after)).sum(axis=1)
    losses = {"student": log_loss_rows(before, votes), "export": log_loss_rows(after, votes)}
    first, second = before.argmax(axis=1), after.argmax(axis=1)
    rows = np.arange(len(before))
    return {
        "rows": len(ids),
        "student_log_loss": float(losses["student"].mean()),
        "log_loss": float(losses["export"].mean()),
        "log_loss_difference": paired_difference(losses["export"], losses["student"], groups, draws, seed),
        "mean_kl": float(kl.mean()),
        "verdicts": float((first != second).mean()),
        "regret": float((before[rows, first] - before[rows, second]).mean()),
        "student_flip_rate": flip_rate(*student),
        "flip_rate": flip_rate(*export),
        "student_ece": expected_calibration_error(before, votes, bins, equal_mass=True),
        "ece": expected_calibration_error(after, votes, bins, equal_mass=True),
        "worst": [
            {"id": ids[i], "kl": float(kl[i]), "student": _named(before[i]), "export": _named(after[i])}
            for i in np.argsort(-kl)[:WORST]
        ],
    }


def exceeded(found: Mapping[str, Any], limits: FidelityConfig) -> list[str]:
    """The limits that `fidelity` breaks, each in words; none where the export may be used in the student's place."""
    measured = {
        "log_loss": found["log_loss_difference"]["difference"],
        "kl": found["mean_kl"],
        "verdicts": found["verdicts"],
        "regret": found["regret"],
        "flip_rate": abs(found["flip_rate"] - found["student_flip_rate"]),
        "ece": found["ece"] - found["student_ece"],
    }
    bounds = {name: getattr(limits, name) for name in measured}
    return [
        f"{name} differs by {measured[name]:.4f}, export.fidelity.{name}={bound:g}"
        for name, bound in bounds.items()
        if bound is not None and measured[name] > bound + ROUNDING
    ]


def _named(probabilities: np.ndarray) -> dict[str, float]:
    return dict(zip(LABELS, probabilities.tolist(), strict=True))
