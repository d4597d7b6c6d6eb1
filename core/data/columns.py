"""Which columns preference data may have, in the layout of LMSYS's Kaggle contest."""

from dataclasses import replace

from core.data.files.rows import Source

TEXTS = ("prompt", "response_a", "response_b")  # lists of texts, one a turn, as JSON or as real lists
REQUIRED = ("id", *TEXTS)
MODELS = ("model_a", "model_b")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")  # one-hot
COUNTS = ("votes_a", "votes_b", "votes_tie")  # how many people voted so
BALLOTS = "votes"  # one digit a person, as PandaLM writes them
# Where other data sets keep votes, by a column's name or by what its cells say. They are not read from there yet.
FOREIGN_VOTES = {"winner", "preference", "preferred", "chosen", "label", "vote", "human_preference", "verdict"}
FOREIGN_VOTE = {"model_a", "model_b", "tie", "tie (bothbad)", "bothbad", "both_bad"}
KNOWN = {*REQUIRED, *MODELS, *WINNERS, *COUNTS, BALLOTS}


def judged(source: Source, ignored: list[str], problems: list[str]) -> Source:
    """The source without the `ignored` columns. What is wrong with the others goes to `problems`."""
    columns, where = source.columns, source.where
    first = next((row.cells for row in source.rows()), {})
    usable = [name for name in columns if name not in ignored]
    if len({*columns}) < len(columns):
        problems.append(f"{where}: column names occur twice: {columns}; rename one of each")
    if missing := [name for name in REQUIRED if name not in usable]:
        problems.append(f"{where}: missing columns {missing}, found {columns}; rename those that hold {missing}")
    for group in (WINNERS, COUNTS):
        missing = [name for name in group if name not in usable]
        if 0 < len(missing) < len(group):
            problems.append(f"{where}: missing columns {missing}; add them, the votes need all of {group}")
    if BALLOTS in usable and COUNTS[0] in usable:
        problems.append(f"{where}: both {BALLOTS!r} and {COUNTS} tell the votes; list one in data.ignore_columns")
    unknown = [name for name in usable if name not in KNOWN]
    votes = [name for name in unknown if name.lower() in FOREIGN_VOTES or str(first.get(name)) in FOREIGN_VOTE]
    if votes and not {WINNERS[0], COUNTS[0], BALLOTS} & {*columns}:
        problems.append(
            f"{where}: columns {votes} seem to hold the votes, which are not read from there yet: write them as "
            f"{WINNERS}, one of them 1 and the others 0, or as {COUNTS}"
        )
        unknown = [name for name in unknown if name not in votes]
    if unknown:
        problems.append(f"{where}: unknown columns {unknown}; list them in data.ignore_columns if not needed")
    return replace(source, columns=usable)
