"""Checks on a GPU what a CPU cannot show, in at most 12 minutes and offline: python -m gpu_check, or make gpu-check

Each step says PASS, FAIL or SKIP with the reason; exit code 1 where one failed. Rerun the same command to resume.
Results: artifacts/gpu_check/<device>-<environment>.json; what a step printed: the folder of that name.
"""

import argparse
import sys
import time
from pathlib import Path

from gpu_check.machine import this_machine
from gpu_check.processes import Processes
from gpu_check.results import Failed
from gpu_check.runner import Record, run_all, table
from gpu_check.steps import STEPS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="run what a CPU can, with tiny models; the rest is skipped")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run these, whether they have passed or not")
    parser.add_argument("--again", action="store_true", help="also run those that have passed")
    parser.add_argument("--list", action="store_true", help="name the steps and run none")
    parser.add_argument("--minutes", type=float, default=12, help="for all steps; the rest is skipped")
    parser.add_argument("--output", type=Path, default=Path("artifacts/gpu_check"), help="folder of the results")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(step.name for step in STEPS))
        return 0
    if unknown := sorted({*(arguments.only or ())} - {step.name for step in STEPS}):
        parser.error(f"no such step: {' '.join(unknown)}; --list names them")
    until = time.monotonic() + 60 * arguments.minutes
    processes = Processes(arguments.dry)
    try:
        here = this_machine(processes, arguments.dry, arguments.output)
    except Failed as reason:
        parser.error(str(reason))
    name = f"{here.slug}-dry" if arguments.dry else here.slug
    record = Record(arguments.output / f"{name}.json", here)
    chosen = [step for step in STEPS if not arguments.only or step.name in arguments.only]
    try:
        run_all(chosen, record, processes, arguments.dry, until, arguments.again or bool(arguments.only))
    except KeyboardInterrupt:
        print("\nstopped: rerun the same command to resume", file=sys.stderr)
        return 130
    versions = ", ".join(f"{package} {version}" for package, version in here.versions.items())
    print(f"\n{here.device}; {versions}\n\n{table(chosen, record)}\n\nwritten: {record.path}")
    return int(any(record.outcomes[step.name].status == "FAIL" for step in chosen))


if __name__ == "__main__":
    sys.exit(main())
