"""What preparing the data tells its user: what was read, kept and rejected, what was joined, how the folds came out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from core import screen
from core.data.collecting import Tally, kinds
from core.data.files.rows import shown
from core.data.folds import UNVOTED, labels
from core.data.groups import joined_prompts
from core.data.layouts.recognising import Recognised
from core.errors import UserError
from core.labels import Labels
from core.records import LABELS, TEST

ROWS = ("read", "kept", "duplicates", "rejected")  # the counts of a `Tally`
FOLDS_SHOWN = 7  # one by one, the test split among them; more are shown together


def check_rejected(rejected: pl.DataFrame, tallies: Sequence[Tally], most: float, file: Path) -> None:
    """Raise `UserError` for a source of which a larger share than `most`, or every row, cannot be used, saying why."""
    for tally in tallies:
        if tally.rejected and (tally.rejected > most * tally.read or tally.rejected == tally.read):
            own = rejected.filter(source=tally.source)
            first = own.row(0, named=True)
            raise UserError(
                f"{tally.source}: {tally.rejected:,} of {tally.read:,} rows cannot be used, data.max_rejected={most:g}"
                f": {kinds(own)}, such as line {first['line']}: {first['reason']}; fix them or the layout "
                f"(docs/data.md), or allow more. All are in {file}"
            )


def show_layouts(sources: Sequence[Recognised], tallies: Sequence[Tally]) -> None:
    """Print the layout that each source was taken to have, the columns left out, and a conversation of each layout."""
    console, shown_layouts = screen.console(soft_wrap=True, highlight=False, markup=False), set[str]()
    for source, tally in zip(sources, tallies, strict=True):
        left_out = f"; not needed: {', '.join(map(shown, source.unneeded))}" if source.unneeded else ""
        read = ", ".join(map(shown, (name for name in source.source.columns if name not in source.unneeded)))
        console.print(f"{source.name}: layout {source.layout.name}, read from {read}{left_out}")
        example = tally.example
        if example is None or source.layout.name in shown_layouts:
            continue
        shown_layouts.add(source.layout.name)
        turns = f", the last of {len(example.prompt)} turns" if len(example.prompt) > 1 else ""
        console.print(f"  for example {shown(example.id)}{turns}")
        for what in ("prompt", "response_a", "response_b"):
            console.print(f"    {what:10} {shown(getattr(example, what)[-1])}")
        votes = ", ".join(f"{v:g} {name}" for v, name in zip(example.votes or (), LABELS, strict=False)) or "none"
        tags = "".join(f", {name} {shown(value)}" for name, value in example.tags.items())
        console.print(f"    votes      {votes}{tags}")


def summarise(
    table: pl.DataFrame, rejected: pl.DataFrame, tallies: Sequence[Tally], found: Labels, folder: Path, file: Path
) -> None:
    """Print what was read, kept, dropped and rejected and why, the labels `found`, what was joined, and the folds."""
    from rich.table import Column, Table

    console = screen.console(soft_wrap=True, highlight=False, markup=False)
    sources = Table(Column("source", overflow="fold"), *ROWS, box=None)
    for tally in tallies:
        sources.add_row(tally.source, *(f"{getattr(tally, what):,}" for what in ROWS))
    folds = Table("fold", "conversations", "groups", *found, UNVOTED, box=None)
    of_folds = pl.col("fold").cast(pl.String) if table["fold"].n_unique() <= FOLDS_SHOWN else pl.lit("all folds")
    name = pl.when(pl.col("fold") == TEST).then(pl.lit("test")).otherwise(of_folds).alias("name")
    parts = table.with_columns(labels(table), name).sort("fold").partition_by("name", as_dict=True, maintain_order=True)
    for (fold,), part in parts.items():
        shares = [f"{100 * part['label'].eq(name).sum() / len(part):.1f}%" for name in (*found, UNVOTED)]
        folds.add_row(str(fold), f"{len(part):,}", f"{part['group'].n_unique():,}", *shares)
    console.print(sources)
    for (source, kind), count in Counter((s, r.split(": ")[0]) for s, _, _, r in rejected.iter_rows()).items():
        console.print(f"rejected from {source}: {count:,} x {kind}; see {file}")
    console.print(folds)
    if found != LABELS:
        console.print(
            "no votes for a tie: these data have two labels, a and b, and so have the judges that learn from them "
            "(docs/data.md)"
        )
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
