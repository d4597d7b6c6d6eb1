"""From rewards of single responses to logits of a, b and tie, with what is learnt in between."""

import torch
from torch import nn

from core.bradley_terry import BradleyTerry
from core.labels import NO_TIE


class Davidson(nn.Module):
    """`forward(rewards [rows, 1]) -> logits [rows, 3]` as shown, both responses of a conversation side by side.

    Davidson's (`core.bradley_terry.BradleyTerry`): (s/2, -s/2, c), s = scale * (r of the row - r of the other one). The
    scale is learnt as its logarithm, so that a better response never gets the smaller reward. c is learnt where people
    could vote for a tie (`ties`).
    """

    def __init__(self, ties: bool, start: BradleyTerry | None = None):
        super().__init__()
        scale = 1.0 if start is None else start.weights.item()
        tie = 0.0 if start is None or start.log_tie == NO_TIE else start.log_tie
        self.log_scale = nn.Parameter(torch.tensor([scale]).log())
        self.log_tie = nn.Parameter(torch.tensor([tie])) if ties else None

    def forward(self, rewards: torch.Tensor) -> torch.Tensor:
        pairs = rewards.float().view(-1, 2)
        strength = self.log_scale.float().exp() * (pairs - pairs.flip(1)).flatten()
        tie = strength.new_tensor([NO_TIE]) if self.log_tie is None else self.log_tie.float()
        return torch.stack([strength / 2, -strength / 2, tie.expand_as(strength)], dim=-1)


def learnt(log_scale: torch.Tensor, log_tie: torch.Tensor | None) -> BradleyTerry:
    """What whole parameters of `Davidson` amount to."""
    return BradleyTerry(log_scale.float().exp().numpy(), NO_TIE if log_tie is None else float(log_tie))
