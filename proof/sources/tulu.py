"""The annotations of Tulu 1: experts compared Tulu 65B with ChatGPT and with two other Tulus (arXiv 2306.04751).

The annotations are a spreadsheet. Its texts are not read: some responses begin with `=`, which the spreadsheet took
for a formula. They come from the instances, joined by `instance_id` and both models.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.files import json_lines
from proof.sources import xlsx
from proof.sources.lmsys_row import lmsys_row
from proof.sources.source import Source

ANNOTATIONS = "human_eval/data/eval_annotations_tulu_1.xlsx"
INSTANCES = "human_eval/data/eval_instances_tulu_1.jsonl"
WINNERS = {
    "a-is-better": "a",
    "a-is-slightly-better": "a",
    "b-is-better": "b",
    "b-is-slightly-better": "b",
    "tie": "tie",
}


def rows(checkout: Path) -> Iterator[dict[str, Any]]:
    """One row an annotation, so a pair that several people annotated comes several times."""
    instances = {}
    for row in json_lines.rows(checkout / INSTANCES):
        responses = {each["model"]: each["completion"] for each in row.cells["completions"]}
        instances[row.cells["id"], frozenset(responses)] = row.cells["prompt"].strip(), responses
    for cells in xlsx.rows(checkout / ANNOTATIONS):
        models = cells["model_a"], cells["model_b"]
        prompt, responses = instances[cells["instance_id"], frozenset(models)]
        yield lmsys_row(
            *(number(cells["id"]), models, prompt, (responses[models[0]], responses[models[1]])),
            WINNERS[cells["preference"]],
            instance_id=cells["instance_id"],
            instance_index=number(cells["instance_index"]),
            evaluator=cells["evaluator"],
            preference=cells["preference"],
            a_acceptable=cells["completion_a_is_acceptable"],
            b_acceptable=cells["completion_b_is_acceptable"],
        )


def number(cell: str) -> int:
    """A whole number, which a spreadsheet keeps as 213.0."""
    return int(float(cell))


TULU = Source(
    name="tulu1_human_eval",
    about="1,150 annotations of 996 pairs of responses to 332 prompts",
    repository="allenai/open-instruct",
    commit="e6c3044aa6201c8bfa4573c1b03142af599e730d",
    files={
        ANNOTATIONS: "104a4d5709e79587dd4764a0f2edc79b9c56ed26",
        INSTANCES: "f776bec0d1ef0ccb3303bd6538513232dca99bc8",
    },
    licence="Apache-2.0, the repository's; the data have none of their own",
    shippable=True,
    output="lmsys_schema.csv",
    digest="6f9ce98050b183ea93233982173d9dd658d1d9516ce286660b191917d3af26b1",
    rows=rows,
)
