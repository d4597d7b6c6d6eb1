"""What exporting costs: merging an adapter into a model of 1.5B parameters, and rounding one of 135M to int8.

    python -m bench.export [--repeats N]

Qwen2.5-1.5B's shapes with random weights in bf16, in several files; LoRA of rank 16 on all linear layers, and a score
head. Both sides turn them into a classifier in fp16, each time in a process of its own, in turn:

    ours    students.merging.merge_adapter
    peft    from_pretrained in fp16, PeftModel.from_pretrained, merge_and_unload, save_pretrained

The clock and memory's peak start once the libraries are imported. A peak is that of all resident memory (VmHWM),
mapped files included; `_anonymous` is that of what is not mapped from files (RssAnon, looked at every
millisecond), both over what was resident at the start; `_fraction` is over the bytes of the base's weights. Seconds are
medians, peaks the largest. `quantise_s`: SmolLM2-135M's shapes in fp16 to w8a8 by students.export.quantising.

The disk takes four times the model, 12 GB, in a temporary folder that is removed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.processes import peak_bytes, resident
from core.models.shards import locate, read_tensor, write_weights
from core.records import LABELS
from students.export.config import QuantisationConfig
from students.merging import PEFT_PREFIX, merge_adapter

RANK, ALPHA, SHARD_BYTES = 16, 32, 10**9
QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
SMOLLM: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "num_labels": len(LABELS),
    "pad_token_id": 0,
}
TARGETS = {"merge_peak_fraction": ["<=", 0.4]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-export-") as name:
        folder = Path(name)
        bytes_ = write_model(folder / "base", QWEN, torch.bfloat16, SHARD_BYTES)
        write_adapter(folder / "base", folder / "adapter")
        write_model(folder / "judge", SMOLLM, torch.float16)
        turns = [{side: run(side, folder) for side in SIDES} for _ in range(arguments.repeats)]
        check_equal(folder / "ours", folder / "peft")
    print(json.dumps({"bench": "export", "figures": figures(turns, bytes_), "targets": TARGETS}))


def write_model(folder: Path, values: dict[str, Any], dtype: torch.dtype, shard_bytes: int = 10**10) -> int:
    """Write a model with random weights, tensor by tensor; the bytes of its weights. `num_labels` makes it a judge."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.for_model(**values)
    kind: Any = AutoModelForSequenceClassification if "num_labels" in values else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config)
    layout = {name: [*parameter.shape] for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)

    def draw(name: str) -> torch.Tensor:
        return torch.empty(layout[name], dtype=dtype).normal_(0, 0.02, generator=generator)

    folder.mkdir()
    write_weights(folder, layout, draw, dtype, shard_bytes)
    config.architectures, config.dtype = [type(model).__name__], dtype
    config.save_pretrained(folder)
    return sum(tensor.numel() for tensor in model.parameters()) * dtype.itemsize


def write_adapter(base: Path, folder: Path) -> None:
    """Write LoRA on all linear layers of `base` and a score head, in PEFT's layout, with random weights."""
    from peft import LoraConfig

    sources = locate(base)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.02

    tensors = {"score.weight": draw(len(LABELS), QWEN["hidden_size"])}
    linears = sorted(name.removesuffix(".weight") for name in sources if name.endswith("_proj.weight"))
    for module in linears:
        outputs, inputs = read_tensor(sources, f"{module}.weight").shape
        tensors |= {f"{module}.lora_A.weight": draw(RANK, inputs), f"{module}.lora_B.weight": draw(outputs, RANK)}
    targets = sorted({module.rsplit(".", 1)[1] for module in linears})
    LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, target_modules=targets, modules_to_save=["score"]
    ).save_pretrained(str(folder))
    save_file({PEFT_PREFIX + name: t for name, t in tensors.items()}, folder / "adapter_model.safetensors")


def run(side: str, folder: Path) -> dict[str, float]:
    """Seconds and peak bytes of one side, in a process of its own."""
    command = [sys.executable, "-m", "bench.export", "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])  # libraries may print, too
    print(f"{side}: " + ", ".join(f"{name} {value:,.1f}" for name, value in found.items()), flush=True)
    return found


def merge_ours(folder: Path) -> dict[str, float]:
    with measured() as found:
        merge_adapter(folder / "base", folder / "adapter", folder / "ours", torch.float16)
    return found


def merge_peft(folder: Path) -> dict[str, float]:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with measured() as found:
        base = AutoModelForSequenceClassification.from_pretrained(
            folder / "base", num_labels=len(LABELS), dtype=torch.float16
        )
        merged: Any = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
        merged.save_pretrained(folder / "peft")
    return found


def quantise_judge(folder: Path) -> dict[str, float]:
    import llmcompressor  # noqa: F401  # half a minute that is not the work's

    from students.export.quantising import quantise

    with measured() as found:
        quantise(folder / "judge", folder / "w8a8", "w8a8", QuantisationConfig(smoothing=None, group=None), [])
    return found


SIDES: dict[str, Callable[[Path], dict[str, float]]] = {
    "ours": merge_ours,
    "peft": merge_peft,
    "quantise": quantise_judge,
}


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fills the dictionary with the seconds within, and by how many MB memory rose at most, all of it and unmapped."""
    found: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark of resident memory falls to what there is now
    before, most, ended = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.001):
            most = max(most, resident()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield found
    finally:
        found["seconds"] = time.perf_counter() - start
        ended.set()
        watcher.join()
    found["peak_mb"] = (peak_bytes() - before["VmRSS"]) / 1e6
    found["peak_anonymous_mb"] = (most - before["RssAnon"]) / 1e6


def check_equal(ours: Path, peft: Path) -> None:
    """Both sides must have made the same judge; PEFT adds in fp16, we in fp32."""
    found, expected = locate(ours), locate(peft)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(read_tensor(found, name), read_tensor(expected, name), atol=1e-3, rtol=1e-2)


def figures(turns: list[dict[str, dict[str, float]]], bytes_: int) -> Mapping[str, float]:
    seconds = {side: statistics.median(turn[side]["seconds"] for turn in turns) for side in SIDES}

    def fraction(side: str, peak: str = "peak_mb") -> float:
        return round(max(turn[side][peak] for turn in turns) * 1e6 / bytes_, 3)

    return {
        "merge_peak_fraction": fraction("ours"),
        "merge_peak_fraction_anonymous": fraction("ours", "peak_anonymous_mb"),
        "merge_mb_per_s": round(bytes_ / 1e6 / seconds["ours"]),
        "merge_peak_fraction_peft": fraction("peft"),
        "merge_peak_fraction_anonymous_peft": fraction("peft", "peak_anonymous_mb"),
        "merge_mb_per_s_peft": round(bytes_ / 1e6 / seconds["peft"]),
        "merge_speedup_vs_peft": round(seconds["peft"] / seconds["ours"], 2),
        "quantise_s": round(seconds["quantise"], 2),
    }


if __name__ == "__main__":
    main()
