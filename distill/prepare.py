"""Files, a hub data set or a simulated arena -> conversations with a test split and folds, in `<root>/data/<name>/`.

    python -m distill.prepare 'data.files=[train.csv]'

Rows that cannot be read are not lost: `rejected.parquet` keeps source, line, id and reason of each.
"""

from typing import TYPE_CHECKING

from core.errors import UserError
from distill.artefacts import conversations
from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    from core.artefacts.building import Artefact
    from core.data.layouts.recognising import Recognised

REJECTED = "rejected.parquet"
READS = "limit overwrite data paths"


def main(config: Config) -> None:
    """Prepare the data that `config.data` names, unless that is done. Raises `UserError` for what a user can mend."""
    from core.data.files import opening
    from core.data.sources import open_recognised

    data = config.data
    opening.check_origin(data)
    sources = [] if data.simulate else open_recognised(data)
    artefact = conversations(config, {source.name: source.identity for source in sources})
    with artefact.building(inputs=opening.input_files(data), overwrite=config.overwrite) as lacking:
        if lacking:
            write(config, sources, artefact)
        else:
            print(f"{artefact.folder} is finished; overwrite=true makes it again")


def write(config: Config, sources: "list[Recognised]", artefact: "Artefact") -> None:
    """Read the sources and write the artefact."""
    from core.data import arena_sim, summary
    from core.data.collecting import Tally, collect, kinds
    from core.data.folds import assign_folds
    from core.data.groups import assign_groups
    from core.data.sources import LOG_ODDS, of_log_odds
    from core.data.table import CONVERSATIONS, save_conversations, to_frame
    from core.labels import labels_of_votes, noted

    data, folder = config.data, artefact.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONVERSATIONS, REJECTED, arena_sim.TRUE_DISTRIBUTION):  # what a broken run left
        (folder / name).unlink(missing_ok=True)

    table, rejected, tallies = collect(sources, config.limit, data.shuffle_sides)
    summary.show_layouts(sources, tallies)
    if data.simulate:
        simulated, true_distribution = arena_sim.simulate(data.simulate)
        table = to_frame(simulated[: config.limit])
        tallies = [Tally(data.name, read=len(table), kept=len(table))]
        true_distribution[: config.limit].write_parquet(folder / arena_sim.TRUE_DISTRIBUTION)
    rejected.write_parquet(folder / REJECTED)
    summary.check_rejected(rejected, tallies, data.max_rejected, folder / REJECTED)
    table = assign_groups(table, data.near_duplicates)
    try:
        table = assign_folds(table, data.folds, data.test_share)
    except UserError as error:
        if rejected.is_empty():
            raise
        told = f"{len(rejected):,} rows were rejected ({kinds(rejected)}), see {folder / REJECTED}"
        raise UserError(f"{error}; {told}") from error
    save_conversations(folder, table)
    rows = {what: sum(getattr(tally, what) for tally in tallies) for what in summary.ROWS}
    labels = labels_of_votes(table["votes"])
    artefact.finish(rows=rows, extra=noted(labels) | ({LOG_ODDS: True} if of_log_odds(sources) else {}))
    summary.summarise(table, rejected, tallies, labels, folder, folder / REJECTED)


if __name__ == "__main__":
    entry_point(main, READS)()
