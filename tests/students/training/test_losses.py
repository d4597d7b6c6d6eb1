"""Losses are sums, agree with their definitions, and add up over any split of the rows."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch.nn import functional

from students.training.config import LossConfig
from students.training.data import Example, collate
from students.training.losses import (
    DIVERGENCES,
    Objective,
    cosine,
    cross_entropy_sum,
    divergence_sum,
    kl,
)
from tests.composing import configured

torch.manual_seed(0)
LOGITS, TEACHER = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
VOTES = torch.rand(7, 3, dtype=torch.float64).softmax(-1)
ONES = torch.ones(7, dtype=torch.float64)
P, Q = TEACHER.softmax(-1), LOGITS.softmax(-1)
BY_HAND = {
    "kl": (P * (P / Q).log()).sum(),
    "cosine": sum(1 - (p @ q) / (p.norm() * q.norm()) for p, q in zip(P, Q, strict=True)),
}


def test_cross_entropy_equals_pytorchs() -> None:
    torch.testing.assert_close(
        cross_entropy_sum(LOGITS, VOTES, ONES), functional.cross_entropy(LOGITS, VOTES, reduction="sum")
    )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_what_their_definitions_say(name: str) -> None:
    torch.testing.assert_close(divergence_sum(DIVERGENCES[name], LOGITS, TEACHER, ONES, 1.0), BY_HAND[name])
    assert divergence_sum(DIVERGENCES[name], TEACHER + 5, TEACHER, ONES, 2.0).abs() < 1e-12  # blind to shifts


def test_the_temperature_softens_both_sides_and_its_square_is_a_factor() -> None:
    expected = 9 * functional.kl_div(
        (LOGITS / 3).log_softmax(-1), (TEACHER / 3).log_softmax(-1), log_target=True, reduction="sum"
    )
    torch.testing.assert_close(divergence_sum(kl, LOGITS, TEACHER, ONES, 3.0), expected)


def test_bounds() -> None:
    far = torch.tensor([[40.0, 0.0, -40.0]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    assert divergence_sum(kl, far, -far, one, 1.0) > 70
    assert divergence_sum(cosine, far, -far, one, 1.0) == pytest.approx(1)


def test_gradient_size_does_not_depend_on_a_high_temperature() -> None:
    norms = []
    for temperature in (20.0, 200.0):
        logits = LOGITS.clone().requires_grad_()
        divergence_sum(kl, logits, TEACHER, ONES, temperature).backward()
        assert logits.grad is not None
        norms.append(logits.grad.norm())
    torch.testing.assert_close(norms[0], norms[1], rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["cross_entropy", *DIVERGENCES])
def test_sums_add_up_over_a_split_and_weight_zero_is_absent(name: str) -> None:
    def loss(rows: slice, weights: torch.Tensor) -> torch.Tensor:
        if name == "cross_entropy":
            return cross_entropy_sum(LOGITS[rows], VOTES[rows], weights)
        return divergence_sum(DIVERGENCES[name], LOGITS[rows], TEACHER[rows], weights, 2.0)

    torch.testing.assert_close(loss(slice(0, 3), ONES[:3]) + loss(slice(3, 7), ONES[3:]), loss(slice(0, 7), ONES))
    masked = ONES.clone()
    masked[3:] = 0
    torch.testing.assert_close(loss(slice(0, 7), masked), loss(slice(0, 3), ONES[:3]))


def objective(*overrides: str) -> Objective:
    return Objective(configured(*overrides).loss)


def test_presets_hold_the_published_weights() -> None:
    weights: Callable[[str], dict[str, float]] = lambda name: dict(  # noqa: E731
        zip((o := objective(f"loss={name}")).names, o.weights.tolist(), strict=True)
    )
    assert weights("votes") == {"cross_entropy": 1.0} and weights("kl") == {"kl": 1.0}
    assert weights("blackpearl") == {"cross_entropy": 0.2, "kl": 0.4, "cosine": 0.4}  # two of each over five
    assert weights("wsdm3") == {"cross_entropy": 0.1, "kl": 0.9}
    assert configured("loss=wsdm3").loss.kl.temperature == 5
    assert not configured("loss=votes").loss.distils and configured("loss=blackpearl").loss.distils


def test_an_objective_is_the_weighted_mean_of_its_terms() -> None:
    examples = [
        Example("x", ([1, 2], [3]), (0.7, 0.2, 0.1), (3.0, 2.0, 1.0)),
        Example("y", ([6], [7]), None, (0.0, 1.0, 2.0), vote_weight=0.0),
    ]
    batch = collate([(0, 0), (0, 1), (1, 0), (1, 1)], examples, torch.device("cpu"))
    logits = torch.randn(4, 3)
    goal = objective("loss.cosine.weight=0.5")
    assert goal.names == ("cross_entropy", "kl", "cosine")
    sums, divisors = goal.sums(logits, batch), goal.normalisers(voted=2, taught=4)
    assert divisors.tolist() == [2, 4, 4]
    torch.testing.assert_close(sums[0] / 2, functional.cross_entropy(logits[:2], batch.votes[:2]))
    expected = functional.kl_div(logits.log_softmax(-1), batch.teacher.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(sums[1] / 4, expected)


def test_every_term_of_the_configuration_has_its_function() -> None:
    terms = {field.name for field in fields(LossConfig)} - {"rows"}
    assert terms == {"cross_entropy", *DIVERGENCES}


def test_a_loss_without_terms_is_refused() -> None:
    votes = configured("loss=votes").loss
    with pytest.raises(ValueError, match="all weights are zero"):
        Objective(replace(votes, cross_entropy=replace(votes.cross_entropy, weight=0.0)))
