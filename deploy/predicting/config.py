"""What `conf/predict/` holds."""

from dataclasses import dataclass

from core.bounds import Count, Natural, Positive, Probabilities, Share


@dataclass(frozen=True)
class RulesConfig:
    """What people vote for kinds of rows that no judge needs to read, as probabilities in the order of `LABELS`; null:
    the judge decides. In `one_empty` the empty response stands first, whichever side it is.
    """

    identical: Probabilities | None
    one_empty: Probabilities | None


@dataclass(frozen=True)
class PredictConfig:
    """`model`: an export's folder, null for the experiment's. `devices`: processes side by side, one a GPU; null: as
    many as there are GPUs. `second_order`: the share of rows that are judged in both orders, those first that need it
    most, which `pilot` rows, drawn at random, tell; `minutes`: the budget after which no more second orders are begun,
    null for none. `rows_per_part`: what a kill can cost, and how often the budget is looked at.
    """

    model: str | None
    devices: Count | None
    max_unreadable: Share
    second_order: Share
    pilot: Natural
    minutes: Positive | None
    rows_per_part: Count
    rules: RulesConfig
