"""The public data that results are measured on, made of their originals. Without a name: shows which, and from where.

    python -m proof.sources all ORIGINALS OUTPUT

ORIGINALS holds a clone of each repository. Each file becomes OUTPUT/NAME/FILE, where `data=human` finds it if OUTPUT
is left out.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.data.public import VARIABLE, public_folder
from core.errors import UserError
from core.exits import plain_ends, refuse, surroundings_explained
from proof.sources.source import COMMAND, Source
from proof.sources.table import SOURCES

ALL = "all"


def main(arguments: Sequence[str] | None = None, sources: Mapping[str, Source] = SOURCES) -> None:
    """The command line. Exits with 2 and one message where something is wrong."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=[*sources, ALL], help="the source to make; left out: show them all")
    parser.add_argument("originals", nargs="?", type=Path, default=Path("originals"), help="default: originals")
    parser.add_argument(
        "output", nargs="?", type=Path, default=public_folder(), help=f"default: %(default)s, or what {VARIABLE} says"
    )
    chosen = parser.parse_args(arguments)
    with plain_ends():
        try:
            with surroundings_explained():
                if chosen.name is None:
                    print("\n\n".join(shown(source, chosen.originals, chosen.output) for source in sources.values()))
                else:
                    names = sources if chosen.name == ALL else [chosen.name]
                    make_all([sources[name] for name in names], chosen.originals, chosen.output)
        except UserError as error:
            refuse(error)


def shown(source: Source, originals: Path, output: Path) -> str:
    """What a user has to know of a source: where it comes from, what may be done with it, what is there."""
    path = source.path(output)
    wrong = source.problem(originals)
    lines = {
        "from": f"{source.url}, commit {source.commit}",
        "licence": f"{source.licence}; {'may be shipped' if source.shippable else 'for measurements only'}",
        "originals": wrong or f"{source.checkout(originals)} has all files as of that commit",
        "get them": "\n            ".join(source.commands(originals)) if wrong else "",
        "makes": f"{path}, which is {'there' if path.exists() else 'not there'}",
    }
    return "\n".join([f"{source.name}: {source.about}", *(f"  {key:10}{line}" for key, line in lines.items() if line)])


def make_all(sources: Sequence[Source], originals: Path, output: Path) -> None:
    """Make the files of `sources`. Raises `UserError`, before it writes any, unless all originals are as expected."""
    from proof.sources.making import make

    problems = [
        f"{problem}: get commit {source.commit} of {source.url}, as `{COMMAND}` shows"
        for source in sources
        if (problem := source.problem(originals))
    ]
    if problems:
        raise UserError("\n".join(problems))
    for source in sources:
        print(f"{source.path(output)}: {make(source, originals, output):,} rows")


if __name__ == "__main__":
    main()
