"""Scored responses: one row a response, or all responses to a prompt in one row as in UltraFeedback and Nectar."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from core.data.files.rows import Row, shown
from core.data.layouts.asking import AROUND, asked
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
    named,
    score_in,
    tags_of,
    text_id,
)
from core.data.layouts.texts import Message, dialogue, parsed
from core.records import Conversation

PROMPT: Names = ("prompt", "instruction", "question")
RESPONSE: Names = ("response", "completion", "answer", "output")
MODEL: Names = ("model", "generator")
LOG_ODDS = "_logit"  # how the name of a column of scores ends that are log-odds against some opponent
SCORE: Names = (
    "score",
    "overall_score",
    "rating",
    "reward",
    "helpfulness",
    "*_score",
    "*_rating",
    "*_reward",
    f"*{LOG_ODDS}",
)
RANK = "rank"  # Nectar: the best response has rank 1
RESPONSES: Names = ("completions", "answers", "responses")


def holds_log_odds(columns: Collection[str]) -> bool:
    """Whether the scores in a table of these columns are log-odds: two of them differ by their pair's logit."""
    return (named(SCORE, columns) or "").endswith(LOG_ODDS)


def by_prompt(rows: Iterable[Row], reading: Reading) -> Iterator[Outcome]:
    """Pairs of the responses that have the same prompt, wherever in the file they stand.

    A row that cannot be read is rejected, and a response that is alone with its prompt. One that several rows score
    counts once, with the mean.
    """
    found: dict[str, tuple[list[str], dict[str, str], dict[tuple[tuple[str, ...], str | None], list[Scored]]]] = {}
    lines: dict[str, int] = {}
    for row in rows:
        try:
            if row.problem is not None:
                raise BadRow(row.problem)
            prompt, response = scored(row.cells, reading)
        except BadRow as problem:
            yield Rejected(row.line, None, str(problem))
            continue
        key = json.dumps(prompt)
        lines.setdefault(key, row.line)
        _, _, given = found.setdefault(key, (prompt, tags_of(row.cells, reading), {}))
        same = given.setdefault((response.turns, response.model), [])
        same.append(response)
        if len(same) > 1:
            yield Repeated(row.line)
    for key, (prompt, tags, given) in found.items():
        responses = [replace(same[0], score=fmean(each.score for each in same)) for same in given.values()]
        if len({response.turns for response in responses}) == 1:
            yield Rejected(lines[key], None, f"the only response to its prompt: {shown(prompt[-1])}")
        for pair in drawn(prompt, responses, reading.pairs_per_prompt, reading.with_votes):
            yield Found(lines[key], replace(pair, id=text_id(pair), source=reading.source, tags=tags), {})


def scored(cells: Cells, reading: Reading) -> tuple[list[str], Scored]:
    """The prompt's turns and the response of a row. Raises `BadRow`."""
    before, name, score = asked(cells, reading, PROMPT), reading.needed(RESPONSE), reading.needed(SCORE)
    return _scored(before, name, cells.get(name), cells, reading.named(MODEL), score)


def nested(cells: Cells, reading: Reading) -> list[Conversation]:
    """Pairs of the responses in a row. Raises `BadRow`, also where one of them cannot be read."""
    name, before = reading.needed(RESPONSES), asked(cells, reading, PROMPT)
    found = cells.get(name)
    if isinstance(found, str):
        found = parsed(name, found)
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
        prompt, response = _scored(before, text, item[text], item, model, score)
        responses.append(response)
    if (different := len({response.turns for response in responses})) < 2:
        raise BadRow(f"{name} holds fewer than two responses: {different}")
    return list(drawn(prompt, responses, reading.pairs_per_prompt, reading.with_votes))


def _scored(
    before: Sequence[Message], name: str, text: Any, cells: Cells, model: str | None, score: str
) -> tuple[list[str], Scored]:
    if not isinstance(text, str):
        raise BadRow(f"{name} is no text: {shown(text)}")
    value = score_in(cells.get(score))
    if value is None:
        raise BadRow(f"{score} is no number: {shown(cells.get(score))}")
    said = dialogue(name, [*before, ("assistant", clean(text))])
    return said.prompt, Scored(tuple(said.response), name_in(cells, model), -value if score == RANK else value)


SCORED = Layout(
    name="scored",
    looks="one row a response: `prompt, model, response` and a number in `score`, `rating`, `reward`, ...; pairs are "
    "drawn from each prompt's responses, `data.pairs_per_prompt` of them",
    source="https://huggingface.co/datasets/nvidia/HelpSteer2, https://huggingface.co/datasets/tatsu-lab/alpaca_eval",
    texts=(PROMPT, RESPONSE, SCORE),
    reads=(MODEL, *AROUND),
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
    reads=AROUND,
    read=by_row(nested),
    settings=("pairs_per_prompt",),
    unneeded=("models", "correct_answers", "incorrect_answers", "turns", "num_responses", "good_natured"),
)
