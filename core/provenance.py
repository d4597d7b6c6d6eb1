"""What an artefact learned from: every conversation behind it, its teachers' and their teachers' among them.

`learned_from.parquet` lies in each folder that holds something learned: trained runs, merged and quantised models,
averages, exports; a store of soft logits has one for each judge (`seen-<fold>.parquet`). So a copy on another machine
still tells it, and whoever scores rows can say whether they are held out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from core.errors import UserError
from core.records import Conversation
from core.tables import read_parquet

LEARNED_FROM = "learned_from.parquet"
LEARNED = pl.Schema({"fingerprint": pl.UInt64(), "directly": pl.Boolean()})
UNTOLD = 0  # stands for a fingerprint where nobody can tell which; no text has it but by a chance of 2^-64


@dataclass(frozen=True)
class Learned:
    """Conversations by fingerprint (`Conversation.fingerprint`).

    `directly`: they trained it, chose its checkpoint, or were fitted to. `through_teachers`: they did so with one of
    its teachers, or with theirs. A conversation may be in both.
    """

    directly: frozenset[int] = frozenset()
    through_teachers: frozenset[int] = frozenset()

    @classmethod
    def of(cls, conversations: Iterable[Conversation]) -> "Learned":
        """What is trained on `conversations`, without a teacher."""
        return cls(frozenset(c.fingerprint() for c in conversations))

    @classmethod
    def unknown(cls) -> "Learned":
        """What a judge has whose teacher may have learned from anything. Whoever descends from it inherits that."""
        return cls(frozenset(), frozenset({UNTOLD}))

    @property
    def is_known(self) -> bool:
        """Whether it can be told of every conversation that it learned from."""
        return UNTOLD not in self.directly | self.through_teachers

    def __or__(self, other: "Learned") -> "Learned":
        """What was made of both."""
        return Learned(self.directly | other.directly, self.through_teachers | other.through_teachers)

    def taught(self) -> "Learned":
        """What whoever learns from this has learned of its teacher."""
        return Learned(frozenset(), self.directly | self.through_teachers)

    def frame(self) -> pl.DataFrame:
        """A table in `LEARNED`, each fingerprint once, in order; one that is in both parts counts as directly."""
        rows = dict.fromkeys(self.through_teachers, False) | dict.fromkeys(self.directly, True)
        return pl.DataFrame(sorted(rows.items()), schema=LEARNED, orient="row")

    @classmethod
    def from_frame(cls, rows: pl.DataFrame) -> "Learned":
        """Back from `frame`."""
        directly, taught = (frozenset(rows.filter(part)["fingerprint"]) for part in ("directly", ~pl.col("directly")))
        return cls(directly, taught)


def union(parts: Iterable[Learned]) -> Learned:
    """What something made of all `parts` has learned from."""
    whole = Learned()
    for part in parts:
        whole |= part
    return whole


def write_learned(folder: Path, learned: Learned) -> None:
    """Note in `folder` what it learned from, before its manifest is written, whose content hash covers it.

    In place of the file that is there: that may be a link to another artefact's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{LEARNED_FROM}.partial"
    learned.frame().write_parquet(partial)
    partial.replace(folder / LEARNED_FROM)


def read_learned(folder: Path) -> Learned:
    """What the artefact in `folder` learned from. Raises `UserError` where that is unknown."""
    path = folder / LEARNED_FROM
    if not path.exists():
        raise UserError(
            f"{folder} has no {LEARNED_FROM}, so which rows are held out from it is unknown: "
            "make it again with this version, or copy the file there"
        )
    return Learned.from_frame(read_parquet(path))


def behind_model(folder: Path) -> Learned:
    """What a model's folder learned from, as far as it was made here: a merged judge, an export, a full tuning.

    Nothing for a model from elsewhere: whoever takes one says that it saw none of the rows.
    """
    places = (folder, folder.parent)  # a full tuning keeps its weights in a folder of its own below the run
    return union(read_learned(place) for place in places if (place / LEARNED_FROM).exists())


def copy_learned(base: Path, folder: Path) -> None:
    """Note in `folder`, a model made of `base`, what that learned from."""
    if (learned := behind_model(base)) != Learned():
        write_learned(folder, learned)
