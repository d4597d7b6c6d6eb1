"""From rewards of single responses to logits of a, b and tie, with what is learnt in between."""

import torch
from torch import nn

from core.labels import NO_TIE
from core.pointwise import Choice


class LearntChoice(nn.Module):
    """`forward(rewards [rows, 1]) -> logits [rows, 3]` as shown, both responses of a conversation side by side.

    Those of `core.pointwise.Choice`. The scale is learnt as its logarithm, so that a better response never gets the
    smaller reward. The constant of ties is learnt where people could vote for one (`ties`).
    """

    def __init__(self, ties: bool, start: Choice | None = None):
        super().__init__()
        scale = 1.0 if start is None else start.scale
        tie = 0.0 if start is None or start.log_tie == NO_TIE else start.log_tie
        self.log_scale = nn.Parameter(torch.tensor([scale]).log())
        self.log_tie = nn.Parameter(torch.tensor([tie])) if ties else None

    def forward(self, rewards: torch.Tensor) -> torch.Tensor:
        pairs, scale = rewards.float().view(-1, 2), self.log_scale.float().exp()
        strength = scale * (pairs - pairs.flip(1)).flatten()
        if self.log_tie is None:
            tie = strength.new_full(strength.shape, NO_TIE)
        else:
            tie = self.log_tie.float() - scale * pairs.mean(dim=1).repeat_interleave(2)
        return torch.stack([strength / 2, -strength / 2, tie], dim=-1)


def learnt(log_scale: torch.Tensor, log_tie: torch.Tensor | None) -> Choice:
    """What whole parameters of `LearntChoice` amount to."""
    return Choice(log_scale.float().exp().item(), NO_TIE if log_tie is None else float(log_tie))
