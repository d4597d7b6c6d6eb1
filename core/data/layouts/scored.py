"""Scored responses: one row a response, or all responses to a prompt in one row as in UltraFeedback and Nectar."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from core.data.files.rows import Row, shown
from core.data.layouts.drawing import Scored, drawn
from core.data.layouts.layout import (
    BadRow,
    Cells,
    Found,
    Layout,
    Names,
    Outcome,
    Reading,
    Rejected,
    Repeated,
    by_row,
    clean,
    name_in,
    number,
    tags_of,
    text_id,
)
from core.data.layouts.texts import dialogue, messages
from core.records import Conversation

PROMPT: Names = ("prompt", "instruction", "question")
RESPONSE: Names = ("response", "completion", "answer", "output")
MODEL: Names = ("model", "generator")
SCORE: Names = (
    "score",
    "overall_score",
    "rating",
    "reward",
    "helpfulness",
    "*_score",
    "*_rating",
    "*_reward",
    "*_logit",
)
RANK = "rank"  # Nectar: the best response has rank 1
RESPONSES: Names = ("completions", "answers", "responses")


def by_prompt(rows: Iterable[Row], reading: Reading) -> Iterator[Outcome]:
    """Pairs of the responses that have the same prompt, wherever in the file they stand.

    A row that cannot be read is rejected, and a response that is alone with its prompt; one that comes again counts
    once.
    """
    found: dict[str, tuple[list[str], dict[Scored, int], dict[str, str]]] = {}
    for row in rows:
        try:
            if row.problem is not None:
                raise BadRow(row.problem)
            prompt, response = scored(row.cells, reading)
            _, lines, _ = found.setdefault(json.dumps(prompt), (prompt, {}, tags_of(row.cells, reading)))
            if lines.setdefault(response, row.line) != row.line:
                yield Repeated(row.line)
        except BadRow as problem:
            yield Rejected(row.line, None, str(problem))
    for prompt, lines, tags in found.values():
        line = min(lines.values())
        if len(lines) == 1:
            yield Rejected(line, None, f"the only response to its prompt: {shown(prompt[-1])}")
        for pair in drawn(prompt, [*lines], reading.pairs_per_prompt, reading.with_votes):
            yield Found(line, replace(pair, id=text_id(pair), source=reading.source, tags=tags), {})


def scored(cells: Cells, reading: Reading) -> tuple[list[str], Scored]:
    """The prompt's turns and the response of a row. Raises `BadRow`."""
    name = reading.named(RESPONSE)
    assert name is not None
    return _scored(_asked(cells, reading), name, cells.get(name), cells, reading.named(MODEL), reading.named(SCORE))


def nested(cells: Cells, reading: Reading) -> list[Conversation]:
    """Pairs of the responses in a row. Raises `BadRow`, also where one of them cannot be read."""
    name = reading.named(RESPONSES)
    assert name is not None
    found, asked = cells.get(name), _asked(cells, reading)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise BadRow(f"{name} is not JSON: {shown(found)} ({error})") from None
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise BadRow(f"{name} is not a list of responses: {shown(found)}")
    responses: list[Scored] = []
    prompt: list[str] = []
    for item in found:
        text, model, score = (
            next((n for n in names if n in item), None) for names in (RESPONSE, MODEL, (*SCORE, RANK))
        )
        if text is None or score is None:
            raise BadRow(f"{name} holds a response without {RESPONSE[0]} or {SCORE[0]}: {shown(sorted(item))}")
        prompt, response = _scored(asked, text, item[text], item, model, score)
        responses.append(response)
    if len(responses) < 2:
        raise BadRow(f"{name} holds fewer than two responses: {len(responses)}")
    return list(drawn(prompt, responses, reading.pairs_per_prompt, reading.with_votes))


def _asked(cells: Cells, reading: Reading) -> Any:
    name = reading.named(PROMPT)
    assert name is not None
    if cells.get(name) in (None, "", []):
        raise BadRow(f"{name} is empty: {shown(cells.get(name))}")
    return messages(name, cells[name], name in reading.lists)


def _scored(
    asked: Any, name: str, text: Any, cells: Cells, model: str | None, score: str | None
) -> tuple[list[str], Scored]:
    if not isinstance(text, str):
        raise BadRow(f"{name} is no text: {shown(text)}")
    assert score is not None
    value = number(cells.get(score))
    if not math.isfinite(value):
        raise BadRow(f"{score} is no number: {shown(cells.get(score))}")
    said = dialogue(name, [*asked, ("assistant", clean(text))])
    return said.prompt, Scored(tuple(said.response), name_in(cells, model), -value if score == RANK else value)


SCORED = Layout(
    name="scored",
    looks="one row a response: `prompt, model, response` and a number in `score`, `rating`, `reward`, ...; pairs are "
    "drawn from each prompt's responses, `data.pairs_per_prompt` of them",
    source="https://huggingface.co/datasets/nvidia/HelpSteer2, https://huggingface.co/datasets/tatsu-lab/alpaca_eval",
    texts=(PROMPT, RESPONSE, SCORE),
    reads=(MODEL,),
    read=by_prompt,
    settings=("pairs_per_prompt",),
    unneeded=("correctness", "coherence", "complexity", "verbosity"),
)
NESTED = Layout(
    name="scored_lists",
    looks="one row a prompt: `instruction` and `completions`, or `prompt` and `answers`, a list of {response, model, "
    "overall_score} or {answer, model, rank}; pairs as in `scored`",
    source="https://huggingface.co/datasets/openbmb/UltraFeedback, https://huggingface.co/datasets/berkeley-nest/Nectar",
    texts=(PROMPT, RESPONSES),
    read=by_row(nested),
    settings=("pairs_per_prompt",),
    unneeded=("models", "correct_answers", "incorrect_answers", "turns", "num_responses", "good_natured"),
)
