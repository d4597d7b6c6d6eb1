"""What comparing judges costs at a million conversations: time and memory.

    python -m bench.eval [--rows N]

Four judges' logits in both orders. Three rows in four have one vote, the others three. A first prompt has 1.2
conversations on average. There are a teacher and a reference, and each judge is recalibrated. The clock runs around
`eval.comparison.compare` with 1,000 draws, so around all that it reports. The input is made before, in its own process.
 `cpu_seconds_1m` is processor time, which other work on the machine does not stretch; `peak_mb`
counts Python, its libraries and the input.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from bench.processes import peak_bytes
from core.records import LABELS
from core.tables import read_parquet
from eval.bootstrap import Resampling
from eval.comparison import BASELINE, Roles, compare
from eval.recalibration import Recalibration

ROWS, DRAWS, BINS = 1_000_000, 1_000, 15
JUDGES = {"teacher": 0.2, "student": 0.5, "student_w8a8": 0.6, BASELINE: 2.0}  # and how noisy their logits are
TARGETS = {"seconds_1m": ["<", 60], "peak_mb": ["<", 2000]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--phase", choices=("write", "measure"), help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase == "write":
        write(arguments.folder, arguments.rows)
    elif arguments.phase == "measure":
        print(json.dumps(measure(arguments.folder)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "bench.eval", "--rows", str(arguments.rows), "--folder", folder, "--phase"]
            subprocess.run([*command, "write"], check=True)
            done = subprocess.run([*command, "measure"], check=True, stdout=subprocess.PIPE)
        print(json.dumps({"bench": "eval", "figures": json.loads(done.stdout), "targets": TARGETS}))


def write(folder: Path, rows: int) -> None:
    """Votes drawn from a true distribution of each row, and judges whose logits are its own with more or less noise."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, (rows, len(LABELS))).astype(np.float32)
    for judge, noise in JUDGES.items():
        pair = truth + noise * rng.normal(0, 1, (2, rows, len(LABELS))).astype(np.float32)
        np.save(folder / f"{judge}.npy", pair)
    counts = np.where(rng.random(rows) < 0.25, 3, 1)
    chances = np.exp(truth.astype(np.float64))
    np.save(folder / "votes.npy", rng.multinomial(counts, chances / chances.sum(axis=1, keepdims=True)).astype(float))
    groups = pl.Series("group", rng.integers(0, 3 * rows, rows)).cast(pl.String)
    pl.DataFrame(groups).write_parquet(folder / "groups.parquet")


def measure(folder: Path) -> dict[str, float]:
    """The figures of one comparison, scaled to `ROWS`."""
    pairs = {judge: np.load(folder / f"{judge}.npy") for judge in JUDGES}
    votes, groups = np.load(folder / "votes.npy"), read_parquet(folder / "groups.parquet")["group"]
    recalibration = Recalibration((0.8, 0.8, 0.9), (0.0, 0.0, 0.1))
    start, start_cpu = time.perf_counter(), time.process_time()
    compared = compare(
        {judge: (ab, ba) for judge, (ab, ba) in pairs.items()},
        votes,
        groups,
        Roles("teacher", "student"),
        {judge: recalibration for judge in JUDGES},
        resampling=Resampling(DRAWS, seed=0),
        bins=BINS,
    )
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    assert len(json.dumps(asdict(compared), allow_nan=False)) and compared.groups > 0.8 * len(votes)
    scale = ROWS / len(votes)
    return {
        "seconds_1m": round(seconds * scale, 1),
        "cpu_seconds_1m": round(cpu_seconds * scale, 1),
        "peak_mb": round(peak_bytes() / 2**20),
    }


if __name__ == "__main__":
    main()
