"""The locked test split and the folds: stratified, every prompt group whole in one of them."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import polars as pl

from core.data.config import FoldsConfig
from core.errors import UserError
from core.records import LABELS, TEST

BLACKPEARL = (5, 2025)  # folds and seed published by LMSYS's 1st place: LMSYS_BlackPearl, src/prepare_data.py
UNVOTED = "none"


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
    for k, (_, left_out) in enumerate(splitter.split(strata, strata)):
        for row in left_out:
            fold[row] = k
    assert min(fold) >= 0
    return fold
