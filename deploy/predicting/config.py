"""What `conf/predict/` holds."""

from dataclasses import dataclass

from core.bounds import Count, Natural, Positive, Probabilities, Share


@dataclass(frozen=True)
class RulesConfig:
    """Probabilities for kinds of rows whose votes are known, so that no judge reads them (docs/predict.md).

    Null: the judge decides.
    """

    identical: Probabilities | None
    """Rows whose two responses are the same: [a, b, tie]."""
    one_empty: Probabilities | None
    """Rows with one empty response: [the empty response, the other, tie], whichever side is empty."""


@dataclass(frozen=True)
class PredictConfig:
    """How `distill.predict` judges a file."""

    model: str | None
    """Folder of an export; null for the experiment's, exports/<run>/<format>."""
    cascade: list[str]
    """Exports from small to large, folders or names such as w8a8: a row goes on to the next where that gains most."""
    devices: Count | None
    """Processes side by side, one a GPU; null: as many as there are GPUs."""
    second_opinions: Share
    """Share of the rows that get a second opinion, where it gains most: the other order, or the next judge's."""
    pilot: Natural
    """Rows a process, drawn at random, that tell where it gains most; at most a quarter of `second_opinions`."""
    minutes: Positive | None
    """Time budget: second opinions that would end after it are left out; null: no budget."""
    rows_per_part: Count
    """Rows between two writes: what a kill can cost, and how often the budget is looked at."""
    rules: RulesConfig
