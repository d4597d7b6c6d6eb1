"""Rewards and standings of responses from a judge in this process, whichever kind it is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from core.exported import ExportedJudge, open_exported
from core.labels import among
from core.prompts import ResponseIds
from core.records import ORDERS, Conversation
from core.scoring import Scorer, check_finite, score, to_own_order
from deploy.ranking.strengths import Standing, pointwise_standing, shares_of
from deploy.ranking.tournament import Tournament, versus
from eval.canaries.checking import check_canaries
from eval.config import CanaryMode
from eval.recalibration import Recalibration, read_recalibration
from teachers.scorers.config import ScorerConfig
from teachers.scorers.opening import open_scorer


@dataclass(frozen=True)
class Ranker:
    """An exported judge with its scorer. A response is given as response a of a conversation."""

    judge: ExportedJudge
    scorer: Scorer
    recalibrate: Recalibration

    def standings(self, groups: Mapping[str, Sequence[Conversation]]) -> dict[str, Standing]:
        """How the responses to each prompt compare: each group holds those to one.

        Raises `UserError` for outputs that are not finite.
        """
        if (choice := self.judge.choice) is not None:
            # All prompts in one stream, so that the scorer's batches are full.
            rewards = self.rewards([*chain(*groups.values())])
            own = np.split(rewards, np.cumsum([*map(len, groups.values())])[:-1])
            how = (choice, self.recalibrate, self.judge.labels)
            return {name: pointwise_standing(each, *how) for name, each in zip(groups, own, strict=True)}
        tournaments = {name: Tournament(len(rows)) for name, rows in groups.items()}
        # A round of all groups at a time, so that the scorer's batches are full.
        while asked := {name: pairs for name, each in tournaments.items() if len(pairs := each.pairs())}:
            shown = [
                versus(groups[name][a], groups[name][b], f"{name}:{a}:{b}")
                for name, pairs in asked.items()
                for a, b in pairs.tolist()
            ]
            shares, begin = self._shares(shown), 0
            for name, pairs in asked.items():
                tournaments[name].tell(pairs, shares[begin : begin + len(pairs)])
                begin += len(pairs)
        return {name: each.strengths().standing() for name, each in tournaments.items()}

    def rewards(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """float [n]: the rewards that a pointwise judge gives, as the export's classifier has them."""
        alone = [versus(c, c, c.id) for c in conversations]
        prompts = [ResponseIds(p.ids, None) for p in self.judge.renderer.render(alone, ("ab",))]
        found = score(self.scorer, prompts)
        check_finite(found, [c.id for c in conversations])
        return found[:, 0].astype(float) if len(found) else np.empty(0)

    def _shares(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """How often a is preferred, by the mean of both orders: [n]."""
        prompts = list(self.judge.renderer.render(conversations))
        shown = score(self.scorer, [prompt.ids for prompt in prompts])
        check_finite(shown, [prompt.id for prompt in prompts])
        own = np.stack([to_own_order(row, prompt.order) for prompt, row in zip(prompts, shown, strict=True)])
        by_order = own.reshape(len(conversations), len(ORDERS), -1)
        return shares_of(self.recalibrate(among(by_order, self.judge.labels)).mean(axis=1))


@contextmanager
def open_ranker(folder: Path, config: ScorerConfig, canaries: CanaryMode = "refuse") -> Iterator[Ranker]:
    """The ranker of an export's folder.

    Where its canaries say that it is computed otherwise, raises `UserError`, or warns, as `canaries` says.
    """
    judge = open_exported(folder)
    with open_scorer(folder, config, judge.max_tokens) as scorer:
        check_canaries(folder, judge.renderer, scorer, canaries)
        yield Ranker(judge, scorer, read_recalibration(folder))
