"""PandaLM's test set: an instruction, often with an input, two responses, and the verdicts of three annotators.

`cmp_key` names both models, as in `bloom-7b_llama-7b`. A response that the file holds as true or false is the text
"True" or "False".
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.layouts.pandalm import ANNOTATORS
from core.data.layouts.votes import BALLOT_DIGITS
from proof.sources.lmsys_row import lmsys_row, majority
from proof.sources.source import Source

TEST_SET = "data/testset-v1.json"


def rows(checkout: Path) -> Iterator[dict[str, Any]]:
    """One row a pair; its winner is the majority's, and `votes` has a digit an annotator."""
    for item in json.loads((checkout / TEST_SET).read_text("utf-8")):
        model_a, model_b = item["cmp_key"].split("_")
        prompt = "\n\n".join(filter(None, (item["instruction"], item["input"])))
        said = "".join(str(item[name]) for name in ANNOTATORS)
        a, b, tie = (said.count(digit) for digit in BALLOT_DIGITS)
        responses = str(item["response1"]), str(item["response2"])
        yield lmsys_row(item["idx"], (model_a, model_b), prompt, responses, majority((a, b, tie)), votes=said)


PANDALM = Source(
    name="pandalm_testset",
    about="999 pairs of responses to 170 prompts, three annotators each",
    repository="WeOpenML/PandaLM",
    commit="3871806e72b4832f815ecafd24d3503c73403f48",
    files={TEST_SET: "4d6d2d4ddafb0dda8415b00dce6633f5ebcfec1b"},
    licence="Apache-2.0, by the repository's README",
    shippable=True,
    output="lmsys_schema.csv",
    digest="a52cf28505761fddcdcd8212bb8ac9a592e85b9323a9837eb0997e1674c0f247",
    rows=rows,
)
