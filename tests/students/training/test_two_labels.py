"""Data without ties: a judge learns, and is validated, as if it had two outputs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from core.labels import WITHOUT_TIES
from core.records import LABELS, Conversation
from students.training.config import RowWeightsConfig
from students.training.data import Batch, Example, collate, make_examples, teacher_weight
from students.training.losses import SWAPPED, Objective
from students.training.samples import sample_table
from students.training.validation import validation
from tests.composing import configured

CPU = torch.device("cpu")
DRAWN = np.random.default_rng(5)
EXAMPLES = [
    Example(
        id=str(i),
        ids=([1, 2, 3], [3, 2, 1]),
        votes=(share, 1 - share, 0.0),
        teacher=tuple(DRAWN.normal(0, 2, 3)),
        vote_weight=weight,
        teacher_weight=1 / weight,
        group=str(i // 2),
    )
    for i, (share, weight) in enumerate([(1.0, 1.0), (0.0, 2.0), (0.75, 4.0), (1.0, 0.5)])
]
LOGITS = torch.tensor(DRAWN.normal(0, 1, (8, 3)))


def exact_batch(examples: list[Example] = EXAMPLES) -> Batch:
    """Both orders of all examples, in fp64."""
    batch = collate([(i, order) for i in range(len(examples)) for order in (0, 1)], examples, CPU)
    names = ("votes", "vote_weights", "teacher", "teacher_weights")
    return replace(batch, **{name: getattr(batch, name).double() for name in names})


def objective(labels: tuple[str, ...] = WITHOUT_TIES, temperature: float = 5.0) -> Objective:
    loss = configured("loss=wsdm3", f"loss.kl.temperature={temperature}", "loss.cosine.weight=0.3").loss
    return Objective(loss, labels)


def test_the_losses_are_those_of_two_outputs_by_hand() -> None:
    batch, temperature = exact_batch(), 5.0
    votes, kl, cosine = objective(temperature=temperature).sums(LOGITS, batch).tolist()
    expected = dict.fromkeys(("votes", "kl", "cosine"), 0.0)
    for row in range(len(LOGITS)):
        z, t = LOGITS[row].tolist(), batch.teacher[row].tolist()
        q = 1 / (1 + np.exp(z[1] - z[0]))  # P(a | no tie)
        share = batch.votes[row, 0].item()
        expected["votes"] -= batch.vote_weights[row].item() * (share * np.log(q) + (1 - share) * np.log1p(-q))
        soft, target = (1 / (1 + np.exp((of[1] - of[0]) / temperature)) for of in (z, t))
        divergence = target * np.log(target / soft) + (1 - target) * np.log((1 - target) / (1 - soft))
        weight = batch.teacher_weights[row].item()
        expected["kl"] += weight * temperature**2 * divergence
        p = 1 / (1 + np.exp(t[1] - t[0]))
        angle = (p * q + (1 - p) * (1 - q)) / np.sqrt((p**2 + (1 - p) ** 2) * (q**2 + (1 - q) ** 2))
        expected["cosine"] += weight * (1 - angle)
    assert votes == pytest.approx(expected["votes"], abs=1e-9)
    assert kl == pytest.approx(expected["kl"], abs=1e-9)
    assert cosine == pytest.approx(expected["cosine"], abs=1e-9)


def test_a_tie_has_no_gradient_and_moves_no_loss() -> None:
    logits, batch = LOGITS.clone().requires_grad_(), exact_batch()
    sums = objective().sums(logits, batch)
    sums.sum().backward()
    assert logits.grad is not None and (logits.grad[:, 2] == 0).all() and (logits.grad[:, :2] != 0).all()
    moved = LOGITS + torch.tensor([0.0, 0.0, 40.0])
    ties = replace(batch, teacher=batch.teacher + torch.tensor([0.0, 0.0, -70.0]))
    torch.testing.assert_close(objective().sums(moved, ties), sums.detach(), rtol=0, atol=0)
    assert (objective(LABELS).sums(moved, batch) - objective(LABELS).sums(LOGITS, batch)).abs().max() > 1


def test_exchanging_the_sides_changes_nothing() -> None:
    flipped = [
        replace(
            e, ids=e.ids[::-1], votes=tuple(e.votes[i] for i in SWAPPED), teacher=tuple(e.teacher[i] for i in SWAPPED)
        )
        for e in EXAMPLES
        if e.votes and e.teacher
    ]
    rows = LOGITS.reshape(4, 2, 3).flip(1).reshape(8, 3)  # what was shown second is now shown first
    torch.testing.assert_close(objective().sums(rows, exact_batch(flipped)), objective().sums(LOGITS, exact_batch()))


def test_validation_is_the_log_loss_of_two_outputs() -> None:
    found = validation(objective(), LOGITS.reshape(4, 2, 3).float(), EXAMPLES)
    mean = (LOGITS.reshape(4, 2, 3)[:, 0] + LOGITS.reshape(4, 2, 3)[:, 1][:, SWAPPED]) / 2
    votes = torch.tensor([e.votes for e in EXAMPLES], dtype=torch.float64)
    assert found.log_loss == pytest.approx(functional.cross_entropy(mean[:, :2], votes[:, :2]).item(), abs=1e-6)
    certain = validation(objective(), torch.zeros(4, 2, 3) + torch.tensor([0.0, 0.0, 50.0]), EXAMPLES)
    assert certain.log_loss == pytest.approx(np.log(2), abs=1e-6)  # whatever it thinks of ties


def test_a_teacher_counts_by_how_sure_it_is_between_two() -> None:
    rows = RowWeightsConfig(votes="one", confidence=1.0, sources={})
    conversation = Conversation("x", ["q"], ["a"], ["b"], votes=[1, 0, 0])
    assert teacher_weight(conversation, [1.0, 1.0, 30.0], rows, WITHOUT_TIES) == pytest.approx(0)
    assert teacher_weight(conversation, [1.0, 1.0, 30.0], rows) == pytest.approx(1)
    assert teacher_weight(conversation, [60.0, 1.0, 30.0], rows, WITHOUT_TIES) == pytest.approx(1)
    assert make_examples([], [], None, rows, WITHOUT_TIES) == []


def test_samples_show_two_labels() -> None:
    conversations = [Conversation(str(i), ["q"], ["a"], ["b"], votes=[i % 2, 1 - i % 2, 0]) for i in range(4)]
    table = sample_table(conversations, torch.zeros(4, 3) + torch.tensor([0, 0, 9.0]), 1, 4, 0, WITHOUT_TIES)
    assert "votes_tie" not in table.columns and "p_tie" not in table.columns
    assert table["p_a"].to_list() == [0.5] * 4 and table["log_loss"].to_numpy() == pytest.approx(np.log(2))
