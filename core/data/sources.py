"""The sources of `data`, each with the layout that it was recognised to have."""

from collections.abc import Sequence
from pathlib import Path

from core.artefacts.manifest import read_manifest
from core.data.config import DataConfig
from core.data.files.opening import matching, open_sources
from core.data.layouts.recognising import Recognised, recognise
from core.data.layouts.scored import SCORED, holds_log_odds
from core.errors import UserError

LOG_ODDS = "log_odds"  # in the manifest's `extra` of data whose scores are


def open_recognised(data: DataConfig, with_votes: bool = True) -> list[Recognised]:
    """The sources of `data.files` or `data.hub`; without `with_votes` nobody is asked how people voted.

    Raises one `UserError` that lists what is wrong with every file and its columns.
    """
    problems: list[str] = []
    sources = open_sources(data, problems)
    found = [recognise(source, data, with_votes, problems) for source in sources]
    recognised = [source for source in found if source is not None]
    problems += _mixed(recognised, data)
    if problems:
        raise UserError("the data cannot be read:\n" + "\n".join(f"  - {p}" for p in problems))
    return recognised


def of_log_odds(sources: Sequence[Recognised]) -> bool:
    """Whether all scores in the sources are log-odds, so that those of two responses differ by their pair's logit."""
    return bool(sources) and all(s.layout is SCORED and holds_log_odds(s.source.columns) for s in sources)


def scores_are_log_odds(data: Path) -> bool:
    """Whether the scores in prepared `data` are log-odds; False of data of before, which do not tell.

    Raises `UserError` as `read_manifest` does.
    """
    return bool(read_manifest(data, "prepare", verify=False).extra.get(LOG_ODDS))


def _mixed(found: Sequence[Recognised], data: DataConfig) -> list[str]:
    """Files of one folder that one pattern matches are parts of one data set, so one layout is expected of them."""
    layouts = {source.source.where: source.layout.name for source in found}
    problems = []
    for pattern in data.files or []:
        folders: dict[str, dict[str, str]] = {}
        for path in matching(pattern):
            if str(path) in layouts:
                folders.setdefault(str(path.parent), {})[layouts[str(path)]] = str(path)
        for files in folders.values():
            if len(files) > 1:
                told = ", ".join(f"{path} {layout}" for layout, path in files.items())
                problems.append(
                    f"data.files: {pattern!r} matches files of several layouts: {told}. Name each file by itself if "
                    "they belong together, or data.layout"
                )
    return problems
