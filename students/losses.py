"""Losses on three-way logits, as pure functions that return sums over rows.

A sum over a batch is the sum of the sums over its parts, so micro-batches and ranks add up exactly; the training loop
divides once, by the number of rows that the whole optimiser step holds.
"""

import torch


def cross_entropy_sum(logits: torch.Tensor, votes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against votes, in nats.

    `logits` [rows, 3]; `votes` [rows, 3], each row a distribution; `weights` [rows], 0 for a row without votes.
    """
    return -(weights * (votes * logits.log_softmax(-1)).sum(-1)).sum()


def kl_divergence_sum(
    logits: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(logits / T)), in nats; both [rows, 3], `weights` [rows].

    T^2 keeps the gradient's size independent of the temperature (Hinton et al., 2015, arXiv 1503.02531, section 2).
    """
    student, target = (logits / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    return temperature**2 * (weights * (target.exp() * (target - student)).sum(-1)).sum()
