"""From rewards of single responses to logits of a, b and tie, with what is learnt in between."""

import torch
from torch import nn

from core.labels import NO_TIE
from core.pointwise import Choice

PACE = 25.0  # the height has far to go in few steps, each of which is about a learning rate


class LearntChoice(nn.Module):
    """`forward(rewards [rows, 1]) -> logits [rows, 3]` as shown, both responses of a conversation side by side.

    Those of `core.pointwise.Choice`. The scale is learnt as its logarithm, so that a better response never gets the
    smaller reward. What concerns ties is learnt where people could vote for one (`ties`); a height starts at 0, so that
    a base whose rewards stand anywhere is no worse a start.
    """

    def __init__(self, ties: bool, start: Choice | None = None):
        super().__init__()
        of = start or Choice(1.0, 0.0)
        self.log_scale = nn.Parameter(torch.tensor([of.scale]).log())
        known = of.log_tie != NO_TIE
        self.log_tie = nn.Parameter(torch.tensor([of.log_tie if known else 0.0])) if ties else None
        self.height = nn.Parameter(torch.tensor([of.height / PACE if known else 0.0])) if ties else None

    def forward(self, rewards: torch.Tensor) -> torch.Tensor:
        pairs, scale = rewards.float().view(-1, 2), self.log_scale.float().exp()
        strength = scale * (pairs - pairs.flip(1)).flatten()
        if self.log_tie is None or self.height is None:
            tie = strength.new_full(strength.shape, NO_TIE)
        else:
            mean = scale * pairs.mean(dim=1).repeat_interleave(2)
            tie = self.log_tie.float() - PACE * self.height.float() * mean
        return torch.stack([strength / 2, -strength / 2, tie], dim=-1)


def learnt(log_scale: torch.Tensor, log_tie: torch.Tensor | None, height: torch.Tensor | None) -> Choice:
    """What whole parameters of `LearntChoice` amount to."""
    scale = log_scale.float().exp().item()
    if log_tie is None or height is None:
        return Choice(scale, NO_TIE)
    return Choice(scale, float(log_tie), PACE * float(height))
