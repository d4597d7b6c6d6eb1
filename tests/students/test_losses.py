"""Losses are sums, agree with PyTorch's own, and add up over any split of the rows."""

import torch
from torch.nn import functional

from students.losses import cross_entropy_sum, kl_divergence_sum

torch.manual_seed(0)
LOGITS, TEACHER = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
VOTES = torch.rand(7, 3, dtype=torch.float64).softmax(-1)
ONES = torch.ones(7, dtype=torch.float64)


def test_cross_entropy_equals_pytorchs() -> None:
    torch.testing.assert_close(
        cross_entropy_sum(LOGITS, VOTES, ONES), functional.cross_entropy(LOGITS, VOTES, reduction="sum")
    )


def test_kl_equals_pytorchs_with_temperature_squared() -> None:
    expected = 9 * functional.kl_div(
        (LOGITS / 3).log_softmax(-1), (TEACHER / 3).log_softmax(-1), log_target=True, reduction="sum"
    )
    torch.testing.assert_close(kl_divergence_sum(LOGITS, TEACHER, ONES, 3.0), expected)


def test_kl_is_zero_for_the_teacher_itself_and_blind_to_shifts() -> None:
    assert kl_divergence_sum(TEACHER + 5, TEACHER, ONES, 2.0).abs() < 1e-12


def test_gradient_size_does_not_depend_on_a_high_temperature() -> None:
    norms = []
    for temperature in (20.0, 200.0):
        logits = LOGITS.clone().requires_grad_()
        kl_divergence_sum(logits, TEACHER, ONES, temperature).backward()
        norms.append(logits.grad.norm())
    torch.testing.assert_close(norms[0], norms[1], rtol=0.02, atol=0)


def test_sums_add_up_over_a_split_and_weight_zero_is_absent() -> None:
    for loss in (
        lambda s, w: cross_entropy_sum(LOGITS[s], VOTES[s], w),
        lambda s, w: kl_divergence_sum(LOGITS[s], TEACHER[s], w, 2.0),
    ):
        torch.testing.assert_close(loss(slice(0, 3), ONES[:3]) + loss(slice(3, 7), ONES[3:]), loss(slice(0, 7), ONES))
        masked = ONES.clone()
        masked[3:] = 0
        torch.testing.assert_close(loss(slice(0, 7), masked), loss(slice(0, 3), ONES[:3]))
