"""Fine-Grained RLHF's development set: four sampled answers to each question, all six pairs of them compared.

Each item has `question`, `prediction 1` to `prediction 4`, and in `preference` six verdicts: 1, 2, or 0 for a tie. The
passages from which the model answered are left out, so a judge sees the question alone.
"""

import json
from collections.abc import Iterator
from itertools import combinations, count
from pathlib import Path
from typing import Any

from proof.sources.lmsys_row import lmsys_row
from proof.sources.source import Source

FEEDBACK = "tasks/qa_feedback/data/dev_feedback.json"
PAIRS = (*combinations((1, 2, 3, 4), 2),)  # in the order of `preference`
VERDICTS = {1: "a", 2: "b", 0: "tie"}


def rows(checkout: Path) -> Iterator[dict[str, Any]]:
    ids = count()
    for index, item in enumerate(json.loads((checkout / FEEDBACK).read_text("utf-8"))):
        for (first, second), verdict in zip(PAIRS, item["preference"], strict=True):
            responses = item[f"prediction {first}"], item[f"prediction {second}"]
            winner = VERDICTS[verdict]
            yield lmsys_row(next(ids), (None, None), item["question"], responses, winner, question_idx=index)


FINEGRAINED_RLHF = Source(
    name="finegrained_rlhf_dev",
    about="3,000 comparisons of sampled answers to 500 questions, one vote each",
    repository="allenai/FineGrainedRLHF",
    commit="a1469d4eba0b3754bcb343beb88f0aca24bf4848",
    files={FEEDBACK: "6b6efddd2daf0d17c917f7773435b357b172d5c9"},
    licence="Apache-2.0, the repository's",
    shippable=True,
    output="lmsys_schema.csv",
    digest="94a563fdf8f159008e59075c78cf67f88c5e61df73942aa00da1bf069025ed0c",
    rows=rows,
)
