"""How many conversations a second the exports of a judge answer: python -m bench.formats FOLDER... [--rows N]

Each export through transformers and, where that reads it here, through vLLM, and the loop one writes first
(`bench.simple_loop`): transformers' classifier over the merged export, eight rows of similar length at a time. One
conversation of each prompt, so that no response is shared. Each engine passes over all of them `--repeats` times, after
a pass that does not count; rates are of the median pass.
On a CPU without VNNI an int8 export goes through transformers alone (`teachers/scorers/int8.py`).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench.configuration import file_of
from bench.simple_loop import transformers_loop
from core.artefacts.manifest import read_manifest
from core.config import from_mapping
from core.data.table import load_conversations
from core.exported import open_exported
from core.records import Conversation
from core.scoring import score_conversations
from students.export.formats import format_named
from teachers.scorers.config import ScorerConfig, TransformersConfig, VllmConfig
from teachers.scorers.opening import open_scorer

LOOP = "loop"
KINDS: dict[str, Any] = {"transformers": TransformersConfig, "vllm": VllmConfig}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path, nargs="+", help="what distill.export wrote, the merged one first")
    parser.add_argument("--data", type=Path, required=True, help="prepared conversations")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    told = parser.parse_args()
    of_prompt = {c.group: c for c in load_conversations(told.data)}
    rows = [*of_prompt.values()][: told.rows]
    seconds: dict[str, list[float]] = {}
    for export in told.exports:
        format = format_named(read_manifest(export, "export").config["export"]["format"])
        for engine in KINDS if format.vllm_on_cpus or torch.cuda.is_available() else ("transformers",):
            name = f"{export.name} {engine}"
            seconds |= measure(export, engine, rows, told.repeats, name)
    rates = {name: len(rows) / statistics.median(times) for name, times in seconds.items()}
    loop = next(rate for name, rate in rates.items() if name.endswith(LOOP))
    for name, rate in rates.items():
        print(f"{name}: {rate:.1f} conversations/s, {rate / loop:.2f} of the loop")
    print(json.dumps({"conversations": len(rows), "per_second": rates}))


def measure(export: Path, engine: str, rows: Sequence[Conversation], repeats: int, name: str) -> dict[str, list[float]]:
    """Seconds of each pass over `rows` through an engine and, beside transformers', through the loop."""
    judge = open_exported(export)
    values, kind = file_of(f"scorer/{engine}"), KINDS[engine]
    if engine == "vllm":  # each pass computes all prompts
        values["engine_args"] = {**values["engine_args"], "enable_prefix_caching": False}
    config: ScorerConfig = from_mapping(kind, values)
    prompts = [[*rendered.ids] for rendered in judge.renderer.render(rows)]
    with ExitStack() as opened:
        scorer = opened.enter_context(open_scorer(export, config, judge.max_tokens))
        sides: dict[str, Callable[[], Any]] = {name: lambda: score_conversations(scorer, judge.renderer, rows)}
        if engine == "transformers" and export.name == "merged":
            loop = transformers_loop(export)
            sides[f"{export.name} {LOOP}"] = lambda: loop(prompts)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(repeats + 1):
            for side, run in sides.items():
                began = time.perf_counter()
                run()
                if turn:
                    times[side].append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
