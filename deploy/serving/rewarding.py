"""Rewards and ranks of responses from the served judge: pointwise by its rewards, pairwise by comparisons."""

import re
from collections.abc import Sequence

import numpy as np
from starlette.exceptions import HTTPException

from core.data.layouts.texts import Dialogue
from core.labels import among
from core.prompts import ResponseIds
from core.records import Conversation
from deploy.ranking.pairing import MOST, comparisons
from deploy.ranking.strengths import Standing, pointwise_standing, shares_of
from deploy.ranking.tournament import Tournament, single, versus
from deploy.serving.reward_schemas import OpenRlhfRequest, Ranked, RankRequest
from deploy.serving.service import Service

END = re.compile(r"<([|｜][^<>|｜]*[|｜]|/s|eos|end_of_turn)>\Z")  # how chat models end what they say
LONGEST_MARK = 64  # characters
NOT_FINITE = "its logits are not finite: serve the judge with scorers.exported.dtype=fp32"


async def rewards(service: Service, conversations: Sequence[Conversation]) -> list[float]:
    """The reward of response a of each conversation, as the export's classifier gives it.

    Raises `HTTPException` 422 of a pairwise judge, which has none, and 500 where one is not finite.
    """
    if not service.renderer.pointwise:
        raise HTTPException(
            422,
            "this judge compares two responses and has no reward for one: ask /v1/rank, or serve a pointwise judge "
            "(model.kind=pointwise)",
        )
    prompts = await service.rendered(conversations, ("ab",))
    outputs = await service.outputs(ResponseIds(prompt.ids, None) for prompt in prompts)
    found = np.concatenate(outputs).astype(float)
    if broken := np.flatnonzero(~np.isfinite(found)).tolist():
        raise HTTPException(500, f"conversation {broken[0]}: {NOT_FINITE}")
    return list(found.tolist())


async def openrlhf_rewards(service: Service, body: OpenRlhfRequest) -> list[float]:
    """The reward of each query's response, which is what follows its prompt, less the mark by which a model ends."""
    responses = [query[len(prompt) :] for query, prompt in zip(body.query, body.prompts, strict=True)]
    texts = zip(body.prompts, map(without_end, responses), strict=True)
    return await rewards(
        service, [single(Dialogue([prompt], [text]), str(i)) for i, (prompt, text) in enumerate(texts)]
    )


def without_end(response: str) -> str:
    """A response less the marks by which its model ended it, and white space around these."""
    while mark := END.search(bare := response.rstrip(), max(0, len(bare) - LONGEST_MARK)):
        response = bare[: mark.start()].rstrip()
    return response


def check_count(service: Service, body: RankRequest) -> int:
    """How many conversations a ranking counts for. Raises `HTTPException` 422 where they are too many."""
    count, limit = len(body.responses), service.settings.max_conversations
    if count > MOST:
        raise HTTPException(422, f"{count} responses to one prompt, and {MOST} can be ranked: send fewer")
    needed = count if service.renderer.pointwise else comparisons(count)
    if needed > limit:
        raise HTTPException(
            422,
            f"{count} responses take {needed} conversations, and this server judges {limit} at a time: send fewer, or "
            "rank them with distill.predict",
        )
    return needed


async def ranked(service: Service, body: RankRequest) -> tuple[list[Ranked], int]:
    """What each response is worth, and how many pairs were compared for it.

    Raises `HTTPException` 500 where the judge's outputs are not finite.
    """
    rows = body.conversations()
    if service.choice is not None:
        found = np.array(await rewards(service, rows))
        return listed(pointwise_standing(found, service.choice, service.recalibrate, service.labels)), 0
    tournament, asked = Tournament(len(rows)), 0
    while len(pairs := tournament.pairs()):
        shown, _ = await service.logits([versus(rows[a], rows[b], f"{a}:{b}") for a, b in pairs.tolist()])
        if not np.isfinite(shown).all():
            raise HTTPException(500, f"a pair of responses: {NOT_FINITE}")
        mean = service.recalibrate(among(shown, service.labels)).mean(axis=1)
        tournament.tell(pairs, shares_of(mean))
        asked += len(pairs)
    return listed(tournament.strengths().standing()), asked


def listed(standing: Standing) -> list[Ranked]:
    """The responses as they are answered, in their own order."""
    bounds = [[None, None]] * len(standing.rewards) if standing.intervals is None else standing.intervals.tolist()
    columns = (standing.rewards.tolist(), bounds, standing.ranks().tolist(), standing.wins.tolist())
    return [
        Ranked(reward=reward, low=low, high=high, rank=rank, wins=wins)
        for reward, (low, high), rank, wins in zip(*columns, strict=True)
    ]
