"""LLMFAO: responses to 13 prompts, compared by a crowd, up to five people a pair, and by GPT-3.5 and GPT-4.

A pair has `text`, `result_x` and `result_y`, and stands on the sides `left` and `right` in the tables of comparisons,
which name the two models there and say who is the `winner`: left, right or tie.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.files import delimited, json_lines
from proof.sources.lmsys_row import lmsys_row, majority
from proof.sources.source import Source

PAIRS, CROWD = "pairs-crowd.jsonl", "crowd-comparisons.csv"
GPT35, GPT4 = "gpt3-crowd-comparisons.csv", "gpt4-crowd-comparisons.csv"
SIDES = ("left", "right", "tie")  # a, b and a tie
INITIALS = dict(zip(SIDES, "abt", strict=True))


def rows(checkout: Path) -> Iterator[dict[str, Any]]:
    """One row a pair; its winner is the majority's."""
    crowd, gpt35, gpt4 = (comparisons(checkout / name) for name in (CROWD, GPT35, GPT4))
    for pair in json_lines.rows(checkout / PAIRS):
        id, cells = pair.cells["id"], pair.cells
        said = [comparison["winner"] for comparison in crowd[id]]
        votes = said.count("left"), said.count("right"), said.count("tie")
        models = crowd[id][0]["left"], crowd[id][0]["right"]
        yield lmsys_row(
            *(id, models, cells["text"], (cells["result_x"], cells["result_y"]), majority(votes)),
            votes_a=votes[0],
            votes_b=votes[1],
            votes_tie=votes[2],
            gpt35=INITIALS[gpt35[id][0]["winner"]],
            gpt4=INITIALS[gpt4[id][0]["winner"]],
            slug=cells["slug"],
        )


def comparisons(path: Path) -> dict[int, list[dict[str, str]]]:
    """The rows of a table of comparisons by the id of their pair."""
    found = defaultdict(list)
    for row in delimited.rows(path):
        found[int(row.cells["id"])].append(row.cells)
    return found


LLMFAO = Source(
    name="llmfao",
    about="2,139 pairs of responses to 13 prompts, 8,931 votes of a crowd, and GPT-3.5's and GPT-4's verdicts",
    repository="dustalov/llmfao",
    commit="9e224e94a40129fd6e1e1529b962307e84af40da",
    files={
        PAIRS: "5b19bec0ea00c41ae73e38666514b4e039d9f236",
        CROWD: "60cf9b89bc848d14e93128963e7e8b67a2c1e102",
        GPT35: "640db2696571c82c09894a2ad77b7313e8c7e0f5",
        GPT4: "f5a6155661870970ab4e5f25ea076213ecf8b55a",
    },
    licence="CC BY 4.0 for the data (attribution: Dmitry Ustalov, llmonitor.com)",
    shippable=True,
    output="lmsys_schema.csv",
    digest="fa54d157fe471fd4bd3ed87a201c9c5e1811f5b91a7e4898eed9507bb07e21ed",
    rows=rows,
)
