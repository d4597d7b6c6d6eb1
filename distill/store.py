"""Look after a store of soft logits: python -m distill.store inspect artifacts/logits/demo_teacher"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError
from core.exits import plain_ends, refuse, surroundings_explained


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exits with 2 and one message where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m distill.store", description="Look after a store of soft logits.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (
        ("inspect", "say what made the store and what its rows are like"),
        ("verify", "check contents, keys, logits, orders, leaks and the manifest; report every problem"),
        ("compact", "merge small parts; before training, since the store's content hash changes"),
    ):
        commands.add_parser(name, help=does).add_argument("path", type=Path, help="the store's folder")
    chosen = parser.parse_args(arguments)
    with plain_ends():
        try:
            with surroundings_explained():
                look_after(chosen.command, chosen.path)
        except UserError as error:
            refuse(error)


def look_after(command: str, folder: Path) -> None:
    """Carry out one of the commands. Raises `UserError` for what is wrong with the store in `folder`."""
    from rich.console import Console

    from core.store import compaction, inspection

    console = Console()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder of a store, such as artifacts/logits/NAME")
    if command == "inspect":
        for table in inspection.inspect(folder):
            console.print(table)
    elif command == "verify":
        if problems := inspection.verify(folder):
            raise UserError(f"{len(problems)} problems\n" + "\n".join(f"  - {problem}" for problem in problems))
        console.print(f"{folder}: nothing wrong", soft_wrap=True)
    else:
        before = inspection.size(folder)
        made = compaction.compact(folder)
        console.print(
            f"{folder}: {len(made)} merged parts, {before:,} -> {inspection.size(folder):,} bytes", soft_wrap=True
        )


if __name__ == "__main__":
    main()
