"""Pack a trained judge and its export into a folder that is small enough to be shipped, and write its model card.

    python -m proof.ship artifacts/students/judge_human/fold=0 artifacts/exports/judge_human/merged judges/human \
        --evaluation artifacts/eval/judge_human

It refuses a judge that learned from anything whose licence does not let a product contain it (proof/sources/table.py):
the judge's canaries hold texts of what it learned from.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.artefacts.manifest import read_manifest
from core.errors import UserError
from core.exits import plain_ends, refuse, surroundings_explained
from core.folders import new_folder
from core.tables import read_parquet
from proof.card import CARD, card
from proof.shippable import check_no_machine_paths, origins
from proof.sources.source import Base, Source
from proof.sources.table import BASES, SOURCES
from students.export.packing import pack
from students.trained import open_trained

SAMPLES = "samples.parquet"


def main(
    arguments: Sequence[str] | None = None,
    sources: Mapping[str, Source] = SOURCES,
    bases: Mapping[str, Base] = BASES,
) -> None:
    """The command line. Exits with 2 and one message for what may not be shipped."""
    parser = argparse.ArgumentParser(
        prog="python -m proof.ship", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="what distill.student wrote")
    parser.add_argument("export", type=Path, help="what distill.export made of it, merged and in fp32")
    parser.add_argument("output", type=Path)
    parser.add_argument("--evaluation", type=Path, required=True, help="what python -m eval wrote of both")
    parser.add_argument("--root", type=Path, default=Path("artifacts"))
    told = parser.parse_args(arguments)
    with plain_ends():
        try:
            with surroundings_explained():
                ship(told.run, told.export, told.output, told.evaluation, told.root, sources, bases)
        except UserError as error:
            refuse(error)


def ship(
    run: Path,
    export: Path,
    output: Path,
    evaluation: Path,
    root: Path,
    sources: Mapping[str, Source],
    bases: Mapping[str, Base],
) -> None:
    """Write `output`. Raises `UserError` for a judge that may not be shipped, and then leaves what is there."""
    judge = open_trained(run, root, "make student")
    samples = run / SAMPLES
    if samples.exists() and len(read_parquet(samples)):
        raise UserError(f"{samples} holds texts of the data: train the judge with tracker.samples=0")
    text = card(
        output, judge, read_manifest(export, "export"), origins(judge, export, root, sources, bases), evaluation
    )
    with new_folder(output) as partial:
        pack(judge, export, partial)
        check_no_machine_paths(partial)
        (partial / CARD).write_text(text)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e6:.1f} MB, its card in {output / CARD}")


if __name__ == "__main__":
    main()
