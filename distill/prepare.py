"""Files, a hub data set or a simulated arena -> conversations with a test split and folds, in `<root>/data/<name>/`.

    python -m distill.prepare 'data.files=[train.csv]'

Rows that cannot be read are not lost: `rejected.parquet` keeps source, line, id and reason of each.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from core.config import to_mapping
from core.data.config import DataConfig
from core.errors import UserError
from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    import polars as pl

    from core.artefacts.building import Artefact
    from core.data.conversations import Tally
    from core.data.readers import Source

STAGE = "prepare"
REJECTED, LAW = "rejected.parquet", "law.parquet"
ROWS = ("read", "kept", "duplicates", "rejected")


def main(config: Config) -> None:
    """Prepare the data that `config.data` names, unless that is done. Raises `UserError` for what a user can mend."""
    from core.artefacts.building import Artefact
    from core.data import readers

    data, folder = config.data, config.root / "data" / config.data.name
    check_origin(data)
    sources = [] if data.simulate else readers.open_sources(data)
    made_of = {**to_mapping(data), "limit": config.limit, "inputs": {s.name: s.identity for s in sources}}
    del made_of["max_rejected"]  # changes nothing in what it lets pass
    inputs = readers.input_files(data)
    artefact = Artefact(folder, STAGE, made_of, [], config.root)
    with artefact.building(inputs=inputs, overwrite=config.overwrite) as lacking:
        if lacking:
            write(config, sources, artefact)
        else:
            print(f"{folder} is finished; overwrite=true makes it again")


def write(config: Config, sources: "list[Source]", artefact: "Artefact") -> None:
    """Read the sources and write the artefact."""
    from core.data import arena_sim, conversations
    from core.records import to_frame

    data, folder = config.data, artefact.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in (conversations.CONVERSATIONS, REJECTED, LAW):  # what a broken run left
        (folder / name).unlink(missing_ok=True)

    table, rejected, tallies = conversations.collect(sources, config.limit, data.shuffle_sides)
    if data.simulate:
        simulated, law = arena_sim.simulate(data.simulate)
        table = to_frame(simulated[: config.limit])
        tallies = [conversations.Tally(data.name, read=len(table), kept=len(table))]
        law[: config.limit].write_parquet(folder / LAW)
    rejected.write_parquet(folder / REJECTED)
    check_rejected(rejected, tallies, data.max_rejected, folder)
    table = conversations.assign_groups(table, data.near_duplicates)
    try:
        table = conversations.assign_folds(table, data.folds, data.test_share)
    except UserError as error:
        if rejected.is_empty():
            raise
        told = f"{len(rejected):,} rows were rejected ({conversations.kinds(rejected)}), see {folder / REJECTED}"
        raise UserError(f"{error}; {told}") from error
    conversations.save(folder, table)
    artefact.finish(rows={what: sum(getattr(tally, what) for tally in tallies) for what in ROWS})
    summarise(table, rejected, tallies, folder)


def check_origin(data: DataConfig) -> None:
    """Exactly one of files, hub and simulate says where the data come from."""
    origins = {"data.files": data.files, "data.hub": data.hub, "data.simulate": data.simulate}
    given = [f"{name}={value}" for name, value in origins.items() if value is not None]
    if len(given) != 1:
        raise UserError(f"set exactly one of {', '.join(origins)}, the others to null; now {given or 'none'} is set")


def check_rejected(rejected: "pl.DataFrame", tallies: "list[Tally]", most: float, folder: Path) -> None:
    """Raise `UserError` for a source of which a larger share than `most`, or every row, cannot be used, saying why."""
    from core.data.conversations import kinds

    for tally in tallies:
        if tally.rejected and (tally.rejected > most * tally.read or tally.rejected == tally.read):
            own = rejected.filter(source=tally.source)
            first = own.row(0, named=True)
            raise UserError(
                f"{tally.source}: {tally.rejected:,} of {tally.read:,} rows cannot be used, data.max_rejected={most:g}"
                f": {kinds(own)}, such as line {first['line']}: {first['reason']}; mend them or the layout "
                f"(docs/data.md), or allow more. All are in {folder / REJECTED}"
            )


def summarise(table: "pl.DataFrame", rejected: "pl.DataFrame", tallies: "list[Tally]", folder: Path) -> None:
    """Print what was read, kept, dropped and rejected and why, what was joined, and how the folds came out."""
    from rich.console import Console
    from rich.table import Column, Table

    from core.data.conversations import UNVOTED, joined_prompts, labels
    from core.data.readers import shown
    from core.records import LABELS, TEST

    console = Console(soft_wrap=True, highlight=False, markup=False)
    sources = Table(Column("source", overflow="fold"), *ROWS, box=None)
    for tally in tallies:
        sources.add_row(tally.source, *(f"{getattr(tally, what):,}" for what in ROWS))
    folds = Table("fold", "conversations", "groups", *LABELS, UNVOTED, box=None)
    for (fold,), part in sorted(table.with_columns(labels(table)).partition_by("fold", as_dict=True).items()):
        shares = [f"{100 * part['label'].eq(name).sum() / len(part):.1f}%" for name in (*LABELS, UNVOTED)]
        folds.add_row("test" if fold == TEST else str(fold), f"{len(part):,}", f"{part['group'].n_unique():,}", *shares)
    console.print(sources)
    for (source, kind), count in Counter((s, r.split(": ")[0]) for s, _, _, r in rejected.iter_rows()).items():
        console.print(f"rejected from {source}: {count:,} x {kind}; see {folder / REJECTED}")
    console.print(folds)
    if TEST not in table["fold"]:
        console.print("no test split: figures will be cross-validated ones, of judges whose teachers saw the votes")
    if joined := joined_prompts(table):
        shortest = min(joined, key=lambda prompts: sum(map(len, prompts[:2])))
        pair = " and ".join(map(shown, shortest[:2]))
        console.print(
            f"near-duplicates: {sum(map(len, joined)):,} first prompts joined into {len(joined):,} groups, "
            f"the largest of {len(joined[0]):,}; for example {pair}"
        )
    console.print(f"{len(table):,} conversations, {table['group'].n_unique():,} groups of first prompts: {folder}")


if __name__ == "__main__":
    entry_point(main)()
