"""What a store of soft logits costs at two million rows: disk, and the time to write, resume and verify it.

    python -m bench.store [--conversations N]

A million conversations in both orders with random ids, logits, fingerprints (equal for both orders) and `outside`, in
part files of 4,096 rows as the teacher stage writes them. The judge was trained on another million, whose fingerprints
are stored with the part files and count among their bytes. Each phase runs in its own process; `peak_mb` is the largest
peak of them all. `resume_scan_s`: entering a `StoreWriter`, which reads what is done. `verify_s`: all that
`python -m distill.store verify` does once Python is up. `bytes_per_row` is that of the store as it was written,
`bytes_per_row_compacted` after `compact`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from bench.processes import peak_bytes, timed
from core.artefacts.building import Artefact
from core.provenance import Learned
from core.store.compaction import compact
from core.store.inspection import size, verify
from core.store.rows import LOGITS
from core.store.seen import write_seen
from core.store.writing import StoreWriter

CONVERSATIONS, ROWS_PER_PART = 1_000_000, 4_096
IDENTITY, JUDGE, FOLD = {"prompt": "0" * 16, "dtype": "bf16", "method": "label_tokens"}, "0" * 64, 0
TARGETS = {
    "bytes_per_row": ["<=", 32],
    "write_rows_per_s": [">=", 100_000],
    "resume_scan_s": ["<", 3],
    "verify_s": ["<", 10],
    "peak_mb": ["<", 1024],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS)
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        seconds = PHASES[arguments.phase](arguments.store, arguments.conversations)
        print(json.dumps({"seconds": seconds, "peak_mb": round(peak_bytes() / 2**20)}))
        return

    rows = 2 * arguments.conversations
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        results, bytes_per_row = {}, {}
        for phase in PHASES:
            command = [sys.executable, "-m", "bench.store", "--phase", phase, "--store", str(store)]
            done = subprocess.run(
                [*command, "--conversations", str(arguments.conversations)], check=True, stdout=subprocess.PIPE
            )
            results[phase] = json.loads(done.stdout)
            bytes_per_row[phase] = size(store) / rows
            parts = len(list(store.glob("part-*")))
            print(f"{phase}: {results[phase]}, {parts} parts, {bytes_per_row[phase]:.2f} bytes a row", flush=True)
    figures = {
        "bytes_per_row": round(bytes_per_row["write"], 2),
        "bytes_per_row_compacted": round(bytes_per_row["compact"], 2),
        "write_rows_per_s": round(rows / results["write"]["seconds"]),
        "resume_scan_s": round(results["resume"]["seconds"], 2),
        "verify_s": round(results["verify"]["seconds"], 2),
        "compact_s": round(results["compact"]["seconds"], 2),
        "peak_mb": max(result["peak_mb"] for result in results.values()),
    }
    print(json.dumps({"bench": "store", "figures": figures, "targets": TARGETS}))


def write(store: Path, conversations: int) -> float:
    """Seconds in the writer alone; making the rows is not timed."""
    rng = np.random.default_rng(0)
    seconds = 0.0
    with StoreWriter(store, IDENTITY, JUDGE, FOLD) as writer:
        for start in range(0, conversations, ROWS_PER_PART // 2):
            rows = random_rows(rng, start, min(ROWS_PER_PART // 2, conversations - start))
            seconds += timed(partial(writer.append, rows))
    write_seen(store, FOLD, Learned(frozenset(rng.integers(0, 2**64, conversations, np.uint64).tolist())))
    Artefact(store, "teacher", {}, [], store.parent).finish()
    return seconds


def random_rows(rng: np.random.Generator, start: int, count: int) -> pl.DataFrame:
    """`count` conversations in both orders, under random ids of which no two are equal."""
    ids = (start + rng.permutation(count)) * 4_999 + rng.integers(0, 4_999, count) + 1_000_000_000
    tokens = np.minimum(np.exp(rng.normal(6.6, 0.7, count)), 2_048).astype(np.int32)
    return pl.DataFrame(
        {
            "id": np.repeat([f"lmsys/{i}" for i in ids], 2),
            "order": ["ab", "ba"] * count,
            "logits": rng.normal(0, 1.5, (2 * count, 3)).astype(np.float32),
            "prompt_tokens": np.repeat(tokens, 2),
            "truncated": np.repeat(tokens == 2_048, 2),
            "judge_fold": np.full(2 * count, FOLD, np.int32),
            "in_sample": np.zeros(2 * count, bool),
            "fingerprint": np.repeat(rng.integers(0, 2**64, count, np.uint64), 2),
            "outside": rng.beta(1, 50, 2 * count).astype(np.float32),
        },
        schema=LOGITS,
    )


def resume(store: Path, conversations: int) -> float:
    def scan() -> None:
        with StoreWriter(store, IDENTITY, JUDGE, FOLD) as writer:
            assert len(writer.done) == 2 * conversations

    return timed(scan)


def check(store: Path, conversations: int) -> float:
    def nothing_wrong() -> None:
        assert verify(store) == []

    return timed(nothing_wrong)


PHASES: dict[str, Callable[[Path, int], float]] = {
    "write": write,
    "resume": resume,
    "verify": check,
    "compact": lambda store, _: timed(lambda: compact(store)),
    "resume compacted": resume,
    "verify compacted": check,
}


if __name__ == "__main__":
    main()
