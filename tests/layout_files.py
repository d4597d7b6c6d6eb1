"""A file of each layout, of invented texts, laid out as the public description of the layout says; and what it holds.

`FILES[name](count)` are the rows; `LABELS_OF[name](count)` how many conversations they make that a, b, nobody won.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

Rows = list[dict[str, Any]]
LANGUAGES = ("English", "German", "Japanese")
NAMES = ("model_a", "model_b", "tie", "tie (bothbad)")


def texts(i: int) -> tuple[str, str, str]:
    """A question that no other row asks, and two answers to it."""
    thing = ("kettle", "ladder", "violin", "cactus", "lantern", "saddle", "teapot")[i % 7]
    return (
        f"How do I mend {thing} {i}, {i * i} years old and {i % 3} times broken?",
        f"Take glue for {thing} {i}.",
        f"Ask a smith, and rest {i} days.",
    )


def lmsys(count: int) -> Rows:
    rows = []
    for i in range(count):
        prompt, a, b = (json.dumps([text, f"{text} Again?"] if i % 4 == 0 else [text]) for text in texts(i))
        rows.append(
            {"id": i, "model_a": "x", "model_b": "y", "prompt": prompt, "response_a": a, "response_b": b}
            | {"winner_model_a": int(i % 3 == 0), "winner_model_b": int(i % 3 == 1), "winner_tie": int(i % 3 == 2)}
        )
    return rows


def wsdm(count: int) -> Rows:
    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        odd = ("[1, 2]", "null", '["not", "a", "list"]')[i % 3] if i % 10 == 0 else ""
        rows.append(
            {"id": f"row{i:03}", "prompt": f"{odd}{prompt}" if i % 20 else f"{odd} {i}", "response_a": a}
            | {"response_b": b, "winner": NAMES[i % 2], "model_a": "x", "model_b": "y", "language": LANGUAGES[i % 3]}
        )
    return rows


def arena(count: int, parts: bool = False) -> Rows:
    """As the release of 100k has it; with `parts` as the one of 140k."""

    def content(text: str) -> Any:
        return [{"type": "text", "text": text, "image": None, "mimeType": None}] if parts else text

    def said(prompt: str, answer: str, turns: int) -> list[dict[str, Any]]:
        return [
            {"role": role, "content": content(text if turn == 0 else f"{text} And then?")}
            for turn in range(turns)
            for role, text in (("user", prompt), ("assistant", answer))
        ]

    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        category = {"math_v0.1": {"math": i % 2 == 0}, "if_v0.1": {"if": i % 5 == 0, "score": i % 5}}
        winner = ("model_a", "model_b", "tie", "both_bad" if parts else "tie (bothbad)")[i % 4]
        rows.append(
            {"id" if parts else "question_id": f"q{i}", "model_a": "x", "model_b": "y", "winner": winner}
            | {"conversation_a": said(prompt, a, 1 + i % 3), "conversation_b": said(prompt, b, 1 + i % 3)}
            | {"turn": 1 + i % 3, "language": LANGUAGES[i % 3], "is_code": i % 2 == 0, "category_tag": category}
            | {"tstamp": 1.7e9 + i, "judge": f"someone {i}", "conv_metadata": {"bold": i}}
        )
    return rows


def transcripts(count: int) -> Rows:
    """As Anthropic's HH has it."""
    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        before = f"\n\nHuman: {prompt}\n\nAssistant: What broke?\n\nHuman: All of it.\n\nAssistant: "
        rows.append({"chosen": before + a, "rejected": before + b})
    return rows


def messages(count: int) -> Rows:
    """As UltraFeedback binarized has it: the prompt is a part of the messages."""
    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        sides = [[{"content": prompt, "role": "user"}, {"content": text, "role": "assistant"}] for text in (a, b)]
        rows.append(
            {"prompt": prompt, "prompt_id": f"p{i // 2}", "chosen": sides[0], "rejected": sides[1]}
            | {"messages": sides[0], "score_chosen": 8.5, "score_rejected": 8.5 - i % 5}
        )
    return rows


def rewardbench(count: int) -> Rows:
    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        rows.append(
            {"prompt": prompt, "chosen": a, "chosen_model": "x", "rejected": b, "rejected_model": "y"}
            | {"subset": ("math", "chat")[i % 2], "id": i}
        )
    return rows


def rewardbench2(count: int) -> Rows:
    """One chosen response against three rejected ones."""
    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        rows.append(
            {"id": f"{i}", "prompt": prompt, "chosen": [a], "rejected": [f"{b} {n}" for n in range(3)]}
            | {"num_correct": 1, "num_incorrect": 3, "total_completions": 4, "models": ["x"] * 4}
            | {"subset": ("Math", "Ties")[i % 2], "additional_metadata": {"category": None}}
        )
    return rows


def graded(count: int) -> Rows:
    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        rows.append(
            {"domain": ("code", "stem")[i % 2], "language": LANGUAGES[i % 3].lower()}
            | {"context": [{"role": "user", "content": prompt}], "response1": a, "response2": b}
            | {"overall_preference": i % 7 - 3, "individual_preference": [{"score": i % 7 - 3, "reasoning": "so"}]}
        )
    return rows


def pandalm(count: int) -> Rows:
    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        said = ((1, 1, 2), (2, 2, 2), (0, 0, 1))[i % 3]
        rows.append(
            {"idx": i, "motivation_app": "Gmail", "cmp_key": "x_y", "instruction": prompt}
            | {"input": "It is blue." if i % 2 else "", "response1": a, "response2": b}
            | {f"annotator{n}": vote for n, vote in enumerate(said, 1)}
        )
    return rows


def judgebench(count: int) -> Rows:
    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        rows.append(
            {"pair_id": f"pair {i}", "original_id": f"{i // 2}", "source": ("maths", "code")[i % 2], "question": prompt}
            | {"response_model": "x", "response_A": a, "response_B": b, "label": ("A>B", "B>A")[i % 2]}
        )
    return rows


def shp(count: int) -> Rows:
    rows = []
    for i in range(count):
        prompt, a, b = texts(i)
        rows.append(
            {"post_id": f"{i // 2}", "domain": "askmending_train", "history": prompt, "human_ref_A": a}
            | {"human_ref_B": b, "labels": i % 2, "score_A": 3 + 4 * (i % 2), "score_B": 5}
        )
    return rows


def scored(count: int) -> Rows:
    """Five responses to each prompt, the rows of a prompt apart from each other."""
    prompts = count // 5
    return [
        {"prompt": texts(i % prompts)[0], "model": f"m{i // prompts}", "response": f"{texts(i % prompts)[1]} {i}"}
        | {"judge_logit": float((i // prompts) // 2), "dataset": ("oasst", "koala")[i % prompts % 2]}
        for i in range(5 * prompts)
    ]


def ultrafeedback(count: int) -> Rows:
    rows = []
    for i in range(count):
        prompt, a, _ = texts(i)
        completions = [
            {"model": f"m{n}", "response": f"{a} {n}", "overall_score": float(n), "critique": "none", "principle": ""}
            for n in range(4)
        ]
        rows.append(
            {"source": "evol_instruct", "instruction": prompt, "models": [f"m{n}" for n in range(4)]}
            | {"completions": completions, "correct_answers": ["None"], "incorrect_answers": ["None"]}
        )
    return rows


def nectar(count: int) -> Rows:
    rows = []
    for i in range(count):
        prompt, a, _ = texts(i)
        answers = [{"answer": f"{a} {n}", "model": f"m{n}", "rank": float(n + 1)} for n in range(7)]
        rows.append(
            {"prompt": f"\n\nHuman: {prompt}\n\nAssistant: ", "answers": answers, "turns": 1, "num_responses": 7}
            | {"source": ["lmsys-chat-1m"], "good_natured": True}
        )
    return rows


FILES: dict[str, Callable[[int], Rows]] = {
    "lmsys": lmsys,
    "wsdm": wsdm,
    "arena": arena,
    "arena140k": lambda count: arena(count, parts=True),
    "transcripts": transcripts,
    "messages": messages,
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "graded": graded,
    "pandalm": pandalm,
    "judgebench": judgebench,
    "shp": shp,
    "scored": scored,
    "ultrafeedback": ultrafeedback,
    "nectar": nectar,
}
LAYOUT_OF = {name: name for name in FILES} | {
    "arena140k": "arena",
    "transcripts": "chosen_rejected",
    "messages": "chosen_rejected",
    "rewardbench2": "rewardbench",
    "ultrafeedback": "scored_lists",
    "nectar": "scored_lists",
}


def write(name: str, folder: Path, count: int = 105) -> Path:
    """The file of a layout, parquet where cells are nested, else CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pl.DataFrame(FILES[name](count), infer_schema_length=None)
    nested = any(kind.is_nested() for kind in table.schema.values())
    path = folder / f"{name}.{'parquet' if nested else 'csv'}"
    table.write_parquet(path) if nested else table.write_csv(path)
    return path
