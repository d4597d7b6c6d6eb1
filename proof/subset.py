"""A few scored responses of each prompt, in the order of a hash: what a small machine can train on.

    python -m proof.subset responses.parquet artifacts/proof/alpaca_eval.parquet [--responses 8]

Of responses to a prompt that have the same score one is kept: between them the teacher has no opinion. AlpacaEval's
log-odds are clipped, and one response in seven stands at the clip.
"""

import argparse
import hashlib
from pathlib import Path

import polars as pl

from core.tables import read_parquet

SCORE = "gpt4_turbo_logit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path, help=f"parquet with prompt, model, response and {SCORE}")
    parser.add_argument("output", type=Path)
    parser.add_argument("--responses", dest="count", type=int, default=8, help="how many to keep of each prompt")
    told = parser.parse_args()
    if not told.responses.is_file():
        parser.error(f"{told.responses} is missing: `python -m proof.sources` says where to get it")
    kept = subset(read_parquet(told.responses), SCORE, told.count)
    told.output.parent.mkdir(parents=True, exist_ok=True)
    partial = told.output.with_suffix(".partial")
    kept.write_parquet(partial)
    partial.replace(told.output)
    print(f"{len(kept)} responses to {kept['prompt'].n_unique()} prompts: {told.output}")


def subset(responses: pl.DataFrame, score: str, count: int) -> pl.DataFrame:
    """At most `count` rows of each prompt, all with different scores; prompts and rows by a hash of their texts."""
    texts = responses.select("prompt", "model").rows()
    places = [(_hash(prompt), _hash(prompt, str(model))) for prompt, model in texts]
    rows = responses.with_columns(pl.DataFrame(places, schema=["prompt_place", "place"], orient="row"))
    rows = rows.sort("prompt_place", "place").unique(["prompt", score], keep="first", maintain_order=True)
    return rows.group_by("prompt", maintain_order=True).head(count).select(responses.columns)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


if __name__ == "__main__":
    main()
