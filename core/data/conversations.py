"""The table of conversations: what raw rows mean, none of them twice, every prompt in one fold; and how it is kept.

    collect -> assign_groups -> assign_folds -> save ... load

Nothing is lost on the way: rows read == conversations + duplicates + rejected rows.
"""

import hashlib
import json
import math
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from core.artefacts.manifest import read_manifest
from core.data.config import FoldsConfig
from core.data.near_duplicates import first_of_each
from core.data.readers import (
    BALLOTS,
    COUNTS,
    MODELS,
    ROWS_AT_ONCE,
    SHOWN,
    SURROGATES,
    TEXTS,
    WINNERS,
    Row,
    Source,
    shown,
)
from core.errors import UserError
from core.records import LABELS, SCHEMA, TEST, Conversation, from_frame, to_frame
from core.tables import read_parquet

CONVERSATIONS = "conversations.parquet"
REJECTED = pl.Schema({"source": pl.String, "line": pl.Int64, "id": pl.String, "reason": pl.String})
PAIR = (*TEXTS, *MODELS)
BALLOT_DIGITS = "120"  # PandaLM: 1 for a, 2 for b, 0 for a tie
BLACKPEARL = (5, 2025)  # folds and seed published by LMSYS's 1st place: LMSYS_BlackPearl, src/prepare_data.py
BOOLEANS = {"true": 1.0, "false": 0.0}  # as pandas writes them in a CSV
UNVOTED = "none"
SEVERAL = 3  # how many kinds of problems a message names


class BadRow(UserError):
    """Why a row is rejected: the kind of problem, a colon, and the offending value."""


@dataclass
class Tally:
    """What became of one source's rows."""

    source: str
    read: int = 0
    kept: int = 0
    duplicates: int = 0
    rejected: int = 0


def collect(
    sources: Sequence[Source], limit: int | None, shuffle_sides: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame, list[Tally]]:
    """Read all sources: conversations (in `SCHEMA`, without folds), rejected rows (in `REJECTED`), each source's tally.

    `limit` keeps the first rows of each source. A row that equals an earlier one in all columns but the id is dropped.
    Ids stay as they are where there is one source and become `source/id` where there are several. The sources in
    `shuffle_sides` get their sides exchanged where the hash of source and id is odd. Raises `UserError` for a name
    there that is no source.
    """
    names = [source.name for source in sources]
    if unknown := [name for name in shuffle_sides if name not in names]:
        raise UserError(f"data.shuffle_sides={unknown}: no such source; choose from {names}")
    seen: set[bytes] = set()
    taken: set[str] = set()
    frames: list[pl.DataFrame] = [pl.DataFrame(schema=SCHEMA)]
    rejected: list[tuple[str, int, str | None, str]] = []
    tallies = [Tally(name) for name in names]
    for source, tally in zip(sources, tallies, strict=True):
        kept: list[Conversation] = []
        for row in islice(source.rows(), limit):
            tally.read += 1
            try:
                conversation = parse(row, source)
                content = _content(conversation, row.cells)
                if content in seen:
                    tally.duplicates += 1
                    continue
                if source.name in shuffle_sides and is_swapped(conversation):
                    conversation = conversation.swap()
                if len(sources) > 1:
                    conversation = replace(conversation, id=f"{source.name}/{conversation.id}")
                if conversation.id in taken:
                    raise BadRow(f"duplicate id with other content: {shown(conversation.id)}")
            except BadRow as problem:
                tally.rejected += 1
                identity = row.cells.get("id")
                shown_id = None if identity is None else _clean(str(identity))
                rejected.append((source.name, row.line, shown_id, str(problem)))
                continue
            seen.add(content)
            taken.add(conversation.id)
            tally.kept += 1
            kept.append(conversation)
            if len(kept) == ROWS_AT_ONCE:  # texts take far less memory in a table than as Python objects
                frames.append(to_frame(kept))
                kept = []
        frames.append(to_frame(kept))
        assert tally.read == tally.kept + tally.duplicates + tally.rejected, tally
    return pl.concat(frames), pl.DataFrame(rejected, schema=REJECTED, orient="row"), tallies


def kinds(rejected: pl.DataFrame) -> str:
    """Why rows of a table in `REJECTED` were rejected, the commonest first, as in `398 x prompt is not JSON`."""
    counts = Counter(reason.split(": ")[0] for reason in rejected["reason"])
    return ", ".join(f"{count:,} x {kind}" for kind, count in counts.most_common(SEVERAL))


def parse(row: Row, source: Source) -> Conversation:
    """The conversation of one raw row, without group and fold. Raises `BadRow`.

    Votes are `votes_a, votes_b, votes_tie`, else the digits in `votes`, else the one-hot winner columns, else None.
    """
    if row.problem is not None:
        raise BadRow(row.problem)
    cells = {name: row.cells.get(name) for name in source.columns}
    prompt, response_a, response_b = (_rounds(name, cells[name]) for name in TEXTS)
    if not len(prompt) == len(response_a) == len(response_b):
        lengths = f"prompt {len(prompt)}, response_a {len(response_a)}, response_b {len(response_b)}"
        raise BadRow(f"unequal rounds: {lengths}")
    if not prompt:
        raise BadRow("zero rounds: prompt, response_a and response_b are []")
    identity = identify(cells)
    model_a, model_b = (_clean(str(cells[name])) if cells.get(name) not in (None, "") else None for name in MODELS)
    return Conversation(identity, prompt, response_a, response_b, model_a, model_b, _votes(cells), source=source.name)


def identify(cells: Mapping[str, Any]) -> str:
    """A row's id as every stage writes it. Raises `BadRow` where it has none, or one that is no text in UTF-8.

    A whole number that came as a float, as pandas keeps a column of them with a gap, is that number: 1000.0 is 1000.
    Text stays letter for letter, 007 and 1000.0 too: a submission has to repeat it so.
    """
    value = cells.get("id")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()
    if missing:
        raise BadRow(f"id is missing: {shown(value)}")
    if SURROGATES.search(str(value)):
        raise BadRow(f"id is not UTF-8: {shown(value)}")
    return str(value)


def group_of(prompt: str) -> str:
    """16 hex digits of sha256 of a first prompt, the same whatever its case, spacing and Unicode form."""
    return hashlib.sha256(_normal(prompt).encode()).hexdigest()[:16]


def assign_groups(conversations: pl.DataFrame, near_duplicates: float | None) -> pl.DataFrame:
    """The table with `group` set: `group_of` the first prompt, of its near-duplicates the smallest.

    `near_duplicates`: the Jaccard similarity from which first prompts are joined, None: only equal ones are. Neither
    the order of rows nor the machine matters.
    """
    prompts = conversations["prompt"].list.first().to_list()
    own = [group_of(prompt) for prompt in prompts]
    group = dict(zip(own, own, strict=True))
    if near_duplicates is not None:
        texts = dict(sorted(zip(own, map(_normal, prompts), strict=True)))
        hashes = list(texts)
        group = {h: hashes[i] for h, i in zip(hashes, first_of_each([*texts.values()], near_duplicates), strict=True)}
    return conversations.with_columns(group=pl.Series([group[h] for h in own], dtype=pl.String))


def joined_prompts(conversations: pl.DataFrame) -> list[list[str]]:
    """The first prompts of each group that joins several, one of each `group_of`; the largest group first."""
    prompts: dict[str, dict[str, str]] = defaultdict(dict)
    for group, prompt in zip(conversations["group"], conversations["prompt"].list.first(), strict=True):
        prompts[group].setdefault(group_of(prompt), prompt)
    return sorted(
        (list(different.values()) for different in prompts.values() if len(different) > 1), key=len, reverse=True
    )


def is_swapped(conversation: Conversation) -> bool:
    """A coin that falls the same way for the same source and id, in every run and whatever else is read."""
    return hashlib.sha256(f"{conversation.source}/{conversation.id}".encode()).digest()[-1] % 2 == 1


def labels(conversations: pl.DataFrame) -> pl.Series:
    """What most people voted, one of `LABELS`; a tie where two are level, `UNVOTED` where nobody voted."""
    votes = pl.col("votes")
    level = votes.list.eval(pl.element() == pl.element().max()).list.sum() > 1
    names = votes.list.arg_max().replace_strict(dict(enumerate(LABELS)), return_dtype=pl.String)
    label = pl.when(votes.is_null()).then(pl.lit(UNVOTED)).when(level).then(pl.lit("tie")).otherwise(names)
    return conversations.select(label.alias("label"))["label"]


def assign_folds(conversations: pl.DataFrame, folds: FoldsConfig, test_share: float) -> pl.DataFrame:
    """The table with `fold` set: stratified on `labels`, rows without votes being a stratum of their own.

    First about `test_share` of the voted conversations, whole groups, become the test split (`TEST`): it depends on the
    texts and votes alone, not on folds and seeds, and holds no group that nobody voted on. It is empty where there are
    too few groups for it.

    Then `grouped`: no group in two folds, also across sources; the order of rows does not matter. `blackpearl`:
    scikit-learn's StratifiedKFold(5, shuffle, seed 2025), which shares prompts between folds: only for comparison with
    numbers published on that split, so without a test split. Raises `UserError` where there is too little to split.
    """
    group = conversations["group"].to_list()
    strata = labels(conversations).to_list()
    if test_share and folds.split == "blackpearl":
        raise UserError(
            f"data.test_share={test_share} with data.folds.split=blackpearl: its folds are those of all rows; set "
            "data.test_share=0, or data.folds.split=grouped"
        )
    test = _test_groups(strata, group, test_share)
    rest = [row for row, of in enumerate(group) if of not in test]
    left, left_group = [strata[row] for row in rest], [group[row] for row in rest]
    prompts, commonest = len({*left_group}), max(Counter(left).values(), default=0)
    most = prompts if folds.split == "grouped" else commonest
    if most < 2:
        raise UserError(
            f"{len(group)} conversations ({prompts} first prompts, {commonest} with the commonest label) cannot be "
            f"split into {folds.split} folds, which takes two: read more rows"
        )
    if not 2 <= folds.count <= most:
        raise UserError(
            f"data.folds.count={folds.count}: {len(rest)} conversations ({prompts} first prompts, {commonest} with "
            f"the commonest label) can be split into 2 to {most} {folds.split} folds; set it so, or read more rows"
        )
    fold = [TEST] * len(group)
    split = _grouped(left, left_group, folds) if folds.split == "grouped" else _blackpearl(left, folds)
    for row, k in zip(rest, split, strict=True):
        fold[row] = k
    return conversations.with_columns(fold=pl.Series(fold, dtype=pl.Int32))


def save(folder: Path, conversations: pl.DataFrame) -> None:
    """Write the table, which has to be in `SCHEMA`; the manifest that completes it is the stage's to write."""
    assert conversations.schema == SCHEMA, conversations.schema
    conversations.write_parquet(folder / CONVERSATIONS)


def load(folder: Path) -> list[Conversation]:
    """The conversations of a finished `data/<name>`, in input order. Raises `UserError` naming the command for it."""
    read_manifest(folder, "prepare", remedy=f"python -m distill.prepare data={folder.name}")
    return from_frame(read_parquet(folder / CONVERSATIONS))


def _normal(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def _rounds(name: str, cell: Any) -> list[str]:
    if cell is None or cell == "":
        raise BadRow(f"{name} is empty: {shown(cell)}")
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{name} is not JSON: {shown(cell)} ({str(error)[:SHOWN]})") from None
    if not isinstance(cell, list):
        raise BadRow(f"{name} is not a list: {shown(cell)}")
    if odd := [item for item in cell if item is not None and not isinstance(item, str)]:
        raise BadRow(f"{name} holds an item that is neither text nor null: {shown(odd[0])}")
    return [_clean(item or "") for item in cell]


def _clean(text: str) -> str:
    """Lone surrogates, which cannot be encoded, become U+FFFD."""
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


def _votes(cells: Mapping[str, Any]) -> list[float] | None:
    if COUNTS[0] in cells:
        counts = [_number(cells[name]) for name in COUNTS]
        if not all(0 <= count < math.inf for count in counts) or not any(counts):
            raise BadRow(f"votes are not counts: {', '.join(shown(cells[name]) for name in COUNTS)}")
        return counts
    if BALLOTS in cells:
        ballots = cells[BALLOTS]  # text: the number 021 would have lost its tie
        if not isinstance(ballots, str) or not ballots or set(ballots) - set(BALLOT_DIGITS):
            raise BadRow(f"votes are not a text of the digits 1 (a), 2 (b), 0 (tie): {shown(ballots)}")
        return [float(ballots.count(digit)) for digit in BALLOT_DIGITS]
    if WINNERS[0] in cells:
        winner = [BOOLEANS.get(str(cells[name]).lower(), _number(cells[name])) for name in WINNERS]
        if sorted(winner) != [0.0, 0.0, 1.0]:
            raise BadRow(f"winner columns are not one-hot: {', '.join(shown(cells[name]) for name in WINNERS)}")
        return winner
    return None


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _content(conversation: Conversation, cells: Mapping[str, Any]) -> bytes:
    """Hash of all columns but the id, ignored ones too: a pair that somebody else judges again is no duplicate."""
    pair = [getattr(conversation, name) for name in PAIR]
    others = sorted((name, str(cell)) for name, cell in cells.items() if name not in ("id", *PAIR))
    return hashlib.sha256(json.dumps([pair, others]).encode()).digest()


def _test_groups(strata: list[str], groups: list[str], share: float) -> set[str]:
    """The groups of the test split: from the largest down, by name among equals, so no seed moves one in or out."""
    voted = {group for group, stratum in zip(groups, strata, strict=True) if stratum != UNVOTED}
    if not share or not voted:
        return set()
    members = _members(strata, groups)
    order = sorted(voted, key=lambda group: (-members[group].total(), group))
    place = _spread(members, order, [1 - share, share])
    return {group for group in order if place[group] == 1}


def _grouped(strata: list[str], groups: list[str], folds: FoldsConfig) -> list[int]:
    members = _members(strata, groups)
    order = sorted(members)
    random.Random(folds.seed).shuffle(order)
    order.sort(key=lambda group: -members[group].total())
    fold_of = _spread(members, order, [1 / folds.count] * folds.count)
    assert len({*fold_of.values()}) == folds.count  # an empty fold costs least, so the first groups fill all
    return [fold_of[group] for group in groups]


def _members(strata: list[str], groups: list[str]) -> dict[str, Counter[str]]:
    """How many rows of each stratum a group has."""
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for group, stratum in zip(groups, strata, strict=True):
        members[group][stratum] += 1
    return members


def _spread(members: Mapping[str, Counter[str]], order: Sequence[str], shares: Sequence[float]) -> dict[str, int]:
    """Group -> part, for parts of about these `shares` of every stratum.

    Greedy: from the largest group down, each goes where it raises the sum of squared stratum shares least, each over
    the part's own share. It balances as well as scikit-learn's StratifiedGroupKFold, which takes 5 to 8 s for 57,477
    rows in 50,000 groups, as long as everything else here together; this takes 0.5 s.
    """
    total = Counter[str]()
    for group in order:
        total.update(members[group])
    held = [Counter[str]() for _ in shares]
    sizes = [0] * len(shares)
    part_of: dict[str, int] = {}
    for group in order:
        added = sorted(members[group].items())  # in one order, so that sums that tie do tie
        costs = [
            (sum((2 * held[k][s] + n) * n / total[s] for s, n in added) / share, sizes[k] / share)
            for k, share in enumerate(shares)
        ]
        best = part_of[group] = costs.index(min(costs))
        held[best].update(members[group])
        sizes[best] += members[group].total()
    return part_of


def _blackpearl(strata: list[str], folds: FoldsConfig) -> list[int]:
    from sklearn.model_selection import StratifiedKFold

    if (folds.count, folds.seed) != BLACKPEARL:
        raise UserError(
            f"data.folds.count={folds.count}, data.folds.seed={folds.seed}: the blackpearl split has "
            f"count={BLACKPEARL[0]} and seed={BLACKPEARL[1]}; set these, or data.folds.split=grouped"
        )
    fold = [-1] * len(strata)
    splitter = StratifiedKFold(folds.count, shuffle=True, random_state=folds.seed)
    for k, (_, held_out) in enumerate(splitter.split(strata, strata)):
        for row in held_out:
            fold[row] = k
    assert min(fold) >= 0
    return fold
