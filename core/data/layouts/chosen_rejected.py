"""A better and a worse response: strings, messages, transcripts, or lists of strings as in RewardBench 2."""

from typing import Any

from core.data.layouts.asking import AROUND, asked_if_any
from core.data.layouts.layout import BadRow, Cells, Layout, Names, Reading, by_row, clean, name_in, score_in
from core.data.layouts.texts import Dialogue, Message, dialogue, messages, parsed
from core.data.layouts.votes import A
from core.records import Conversation

PROMPT: Names = ("prompt", "instruction", "question", "conversations", "input")
CHOSEN: Names = ("chosen", "chosen_response")
SUBSET: Names = ("subset", "domain")  # of a benchmark
REJECTED: Names = ("rejected", "rejected_response")
MODELS: tuple[Names, Names] = (("chosen_model", "chosen-model"), ("rejected_model", "rejected-model"))
SCORES: tuple[Names, Names] = (
    ("score_chosen", "chosen_score", "chosen_avg_rating", "chosen-rating", "chosen_rating"),
    ("score_rejected", "rejected_score", "rejected_avg_rating", "rejected-rating", "rejected_rating"),
)


def conversations(cells: Cells, reading: Reading) -> list[Conversation]:
    """Every chosen response against every rejected one, a being the chosen. Raises `BadRow`."""
    chosen, rejected = sides(cells, reading)
    model_a, model_b = (name_in(cells, reading.named(names)) for names in MODELS)
    score_a, score_b = (score_in(reading.cell(cells, names)) for names in SCORES)
    votes = A if reading.with_votes else None
    return [
        Conversation("", a.prompt, a.response, b.response, model_a, model_b, votes, score_a=score_a, score_b=score_b)
        for a in chosen
        for b in rejected
    ]


def sides(cells: Cells, reading: Reading) -> tuple[list[Dialogue], list[Dialogue]]:
    """The chosen and the rejected responses, each with the prompt that all of them answer. Raises `BadRow`."""
    before = asked_if_any(cells, reading, PROMPT)
    chosen, rejected = (_responses(cells, reading, names, before) for names in (CHOSEN, REJECTED))
    for one in (*chosen, *rejected):
        if one.prompt != chosen[0].prompt:
            raise BadRow(f"chosen and rejected answer other prompts: {len(chosen[0].prompt)}, {len(one.prompt)} turns")
    return chosen, rejected


def _responses(cells: Cells, reading: Reading, names: Names, before: list[Message]) -> list[Dialogue]:
    """The dialogues that a cell ends: one, or one for each text of a list."""
    name = reading.needed(names)
    cell: Any = cells.get(name)
    value = parsed(name, cell) if isinstance(cell, str) and name in reading.lists else cell
    if value is None or value == []:
        raise BadRow(f"{name} is empty: {value}")
    several = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if several and isinstance(cell, str) and reading.named(SUBSET) is None:  # an answer that is a JSON list
        return [_dialogue(name, cell, before)]
    return [_dialogue(name, each, before) for each in (value if several else [value])]


def _dialogue(name: str, cell: Any, before: list[Message]) -> Dialogue:
    said = messages(name, cell, speaker="assistant")
    first = next((message for message in before if message[0] != "system"), None)
    if isinstance(cell, str) and first not in (None, said[0]):  # an answer, even if it looks like a conversation
        said = [("assistant", clean(cell))]
    if said[0][0] != "assistant":  # the whole conversation, whatever `prompt` repeats of it
        told = [message for message in before[:1] if message[0] == "system" and said[0][0] != "system"]
        return dialogue(name, [*told, *said])
    if all(role == "system" for role, _ in before):
        raise BadRow(f"no prompt: {name} holds an answer alone, and there is no text in {' or '.join(PROMPT[:3])}")
    return dialogue(name, [*before, *said])


CHOSEN_REJECTED = Layout(
    name="chosen_rejected",
    looks='`chosen, rejected`: texts, lists of {role, content}, or transcripts of "Human:" and "Assistant:", with or '
    "without `prompt`",
    source="https://huggingface.co/datasets/Anthropic/hh-rlhf, "
    "https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized, "
    "https://huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences",
    texts=(CHOSEN, REJECTED),
    reads=(PROMPT, *AROUND, *MODELS, *SCORES),
    read=by_row(conversations),
    unneeded=("messages", "margin"),
    sided=False,
)
REWARDBENCH = Layout(
    name="rewardbench",
    looks="`prompt, chosen, rejected`, each a text or a list of texts, and `subset` or `domain`: every chosen response "
    "against every rejected one",
    source="https://huggingface.co/datasets/allenai/reward-bench, "
    "https://huggingface.co/datasets/allenai/reward-bench-2, https://huggingface.co/datasets/THU-KEG/RM-Bench",
    texts=(PROMPT, CHOSEN, REJECTED, SUBSET),
    reads=(*AROUND, *MODELS, *SCORES),
    read=CHOSEN_REJECTED.read,
    unneeded=("num_correct", "num_incorrect", "total_completions", "models", "additional_metadata"),
    sided=False,
)
