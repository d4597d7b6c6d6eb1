"""A row of one turn in the layout of Kaggle's LMSYS contest, which `core/data/layouts/lmsys.py` reads."""

import json
from typing import Any

from core.data.layouts.votes import WINNERS
from core.records import LABELS


def lmsys_row(
    id: int, models: tuple[str | None, str | None], prompt: str, responses: tuple[str, str], winner: str, **further: Any
) -> dict[str, Any]:
    """Texts become lists of one turn; `winner` is one of `LABELS`; `further` columns come last."""
    texts = zip(("prompt", "response_a", "response_b"), (prompt, *responses), strict=True)
    return {
        "id": id,
        "model_a": models[0],
        "model_b": models[1],
        **{name: json.dumps([text], ensure_ascii=False) for name, text in texts},
        **{name: int(label == winner) for name, label in zip(WINNERS, LABELS, strict=True)},
        **further,
    }


def majority(votes: tuple[int, int, int]) -> str:
    """The label that most people chose, their votes in the order of `LABELS`; a tie where several labels lead."""
    leading = [label for label, count in zip(LABELS, votes, strict=True) if count == max(votes)]
    return leading[0] if len(leading) == 1 else "tie"
