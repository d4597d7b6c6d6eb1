r"""What a pointwise export gives each response of prepared conversations, for teacher=stored to fit to votes.

    python -m proof.scores --data artifacts/data/human artifacts/exports/proof_gpt4/merged scores.parquet
    python -m distill.teacher +exp=proof_human teacher=stored teacher.name=gpt4_student \
        teacher.stored.file=scores.parquet teacher.stored.learned_from=none

So a judge that never saw these votes is measured as it is: only the scale and the rate of ties are fitted, to the
training votes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from core.data.table import load_conversations
from core.records import Conversation
from deploy.ranking.ranker import open_ranker
from teachers.scorers.config import TransformersConfig

SCORER = TransformersConfig(backend="transformers", dtype="fp32", batch_tokens=8192, load_in_8bit=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="a pointwise judge that distill.export wrote")
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="prepared conversations")
    told = parser.parse_args()
    texts = responses(load_conversations(told.data))
    with open_ranker(told.export, SCORER) as ranker:
        scored = pl.DataFrame(
            {
                "prompt": [c.prompt for c in texts],
                "response": [c.response_a for c in texts],
                "score": ranker.rewards(texts),
            }
        )
    told.output.parent.mkdir(parents=True, exist_ok=True)
    partial = told.output.with_suffix(".partial")
    scored.write_parquet(partial)
    partial.replace(told.output)
    print(f"{len(scored)} responses: {told.output}")


def responses(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Every response to every prompt once, as response a of a conversation with nothing else."""
    found = {
        (*c.prompt, None, *response): Conversation("", c.prompt, response, [])
        for c in conversations
        for response in (c.response_a, c.response_b)
    }
    return [replace(c, id=str(i)) for i, c in enumerate(found.values())]


if __name__ == "__main__":
    main()
