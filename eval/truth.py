"""Whose opinion judges are measured by (`eval.truth`), in the words of sentences and pages."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Truth:
    """Words for what stands in "as `who` would", "above `whose`", "close to `it`", "rated from `all_of_it`", "known by
    `frequencies` alone", "`share` for it", "where `tie`" and "seen of these `rows`".
    """

    who: str
    whose: str
    it: str
    all_of_it: str
    frequencies: str
    share: str
    tie: str
    rows: str


VOTES = Truth(
    who="people",
    whose="people's",
    it="the votes",
    all_of_it="people's votes",
    frequencies="vote frequencies",
    share="share of votes",
    tie="people voted a tie",
    rows="votes",
)
TEACHER = Truth(
    who="the teacher",
    whose="the teacher's",
    it="the teacher's probabilities",
    all_of_it="the teacher's probabilities",
    frequencies="the teacher's mean probabilities",
    share="the teacher's probability",
    tie="the teacher expects a tie",
    rows="conversations",
)
TRUTHS: Mapping[str, Truth] = {"votes": VOTES, "teacher": TEACHER}
