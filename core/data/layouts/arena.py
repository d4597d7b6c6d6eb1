"""Chatbot Arena's own releases (33k, 100k, 140k): two whole conversations a row, and the winner's name."""

from collections.abc import Mapping
from typing import Any

from core.data.files.rows import shown
from core.data.layouts.layout import MODELS, BadRow, Cells, Layout, Reading, by_row, name_in
from core.data.layouts.texts import dialogue, messages, parsed
from core.data.layouts.votes import by_name
from core.records import Conversation

SIDES = ("conversation_a", "conversation_b")
WINNER, CATEGORIES = "winner", "category_tag"


def conversations(cells: Cells, reading: Reading) -> list[Conversation]:
    """The pair of a row. Raises `BadRow`, also where the two users did not say the same."""
    a, b = (dialogue(name, messages(name, cells.get(name), name in reading.lists)) for name in SIDES)
    if a.prompt != b.prompt:
        first = next((pair for pair in zip(a.prompt, b.prompt, strict=False) if pair[0] != pair[1]), None)
        told = " and ".join(map(shown, first)) if first else f"{len(a.prompt)} and {len(b.prompt)} turns"
        raise BadRow(f"the user does not say the same in {' and '.join(SIDES)}: {told}")
    model_a, model_b = (name_in(cells, reading.named((name,))) for name in MODELS)
    votes: list[float] | None = None
    tags: dict[str, str] = {}
    if reading.with_votes and WINNER in reading.columns:
        votes, tags = by_name(WINNER, cells.get(WINNER))
    tags |= categories(cells.get(CATEGORIES)) if CATEGORIES in reading.columns else {}
    return [Conversation("", a.prompt, a.response, b.response, model_a, model_b, votes, tags=tags)]


def categories(cell: Any) -> dict[str, str]:
    """A tag for each category in `category_tag`, which holds {"math_v0.1": {"math": true, ...}, ...}."""
    found = {}
    if isinstance(cell, str) and cell.startswith("{"):
        cell = parsed(CATEGORIES, cell)
    for version, answers in cell.items() if isinstance(cell, Mapping) else ():
        name = version.split("_v")[0]
        if isinstance(answers, Mapping) and isinstance(answers.get(name), bool):
            found[name] = str(answers[name])
    return found


ARENA = Layout(
    name="arena",
    looks="`conversation_a, conversation_b`: lists of {role, content}, content a text or a list of parts; `winner` is "
    "model_a, model_b, tie, tie (bothbad) or both_bad",
    source="https://huggingface.co/datasets/lmsys/chatbot_arena_conversations, "
    "https://huggingface.co/datasets/lmarena-ai/arena-human-preference-100k, "
    "https://huggingface.co/datasets/lmarena-ai/arena-human-preference-140k",
    texts=tuple((name,) for name in SIDES),
    votes=((WINNER,),),
    reads=(*((name,) for name in MODELS), (CATEGORIES,)),
    read=by_row(conversations),
    unneeded=(
        *("judge", "turn", "anony", "tstamp", "openai_moderation", "toxic_chat_tag", "conv_metadata", "is_refusal"),
        *("dedup_tag", "judge_hash", "evaluation_session_id", "evaluation_order", "full_conversation", "embedding"),
        *("timestamp", "occupational_tags"),
    ),
    unlabelled=True,
)
