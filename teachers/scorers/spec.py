"""What every scorer is opened with, whichever backend it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelSpec:
    """What is scored with: the folder `model`, asked prompts of up to `max_tokens` tokens.

    `label_ids`: the tokens that a language model is asked for; None for the `outputs` (None: any number) of a score
    head. `adapter`: a LoRA folder to be served beside `model`. `fold`: the fold that a server's URL is filled with.
    """

    model: Path
    max_tokens: int
    label_ids: Sequence[int] | None = None
    outputs: int | None = None
    adapter: Path | None = None
    fold: int | None = None
