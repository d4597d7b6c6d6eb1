"""A judge as a reward function of TRL's trainers, such as `GRPOTrainer`: in this process, or from a server.

    from deploy.rewards import open_reward

    with open_reward("artifacts/exports/demo_pointwise/w8a8") as reward:
        GRPOTrainer(model=..., reward_funcs=reward, train_dataset=...).train()

A pointwise judge rewards each completion by itself. A pairwise one compares the completions of a prompt with each
other, which is what GRPO does with rewards anyway; its rewards mean something within their prompt alone. So all
completions of a prompt have to come in one call: with several processes, `per_device_train_batch_size` has to be a
multiple of `num_generations`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from core.data.layouts.layout import BadRow
from core.data.layouts.texts import Dialogue, dialogue, message
from core.errors import UserError
from deploy.ranking.ranker import Ranker, open_ranker
from deploy.ranking.tournament import single
from teachers.scorers.config import BATCH_TOKENS, TransformersConfig
from teachers.scorers.server.answers import TryAgain, seconds_of, transport_errors
from teachers.scorers.server.pool import pause_after

TRIES = 8  # of a request, a minute or two together
SECONDS = 600.0  # a server may be asked for many rewards at a time
Chat = str | list[dict[str, str]]  # as TRL's data sets have prompts and completions: texts or messages


class Rewards(Protocol):
    """What a reward function asks: how good the answers to each prompt are; `pairwise`: among each other."""

    @property
    def pairwise(self) -> bool: ...

    def of(self, groups: Sequence[Sequence[Dialogue]]) -> list[list[float]]:
        """The rewards of each group's last answers; a group holds answers to one prompt."""
        ...


@dataclass(frozen=True)
class JudgeReward:
    """The callable that TRL takes."""

    rewards: Rewards

    def __call__(self, prompts: Sequence[Chat], completions: Sequence[Chat], **columns: Any) -> list[float]:
        """A reward for each completion. Raises `UserError` where a prompt and its completion are no chat."""
        groups: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(repr(prompt), []).append(place)
        chats = [chat(place, *pair) for place, pair in enumerate(zip(prompts, completions, strict=True))]
        if self.rewards.pairwise:
            check_comparable(list(groups.values()), chats)
        found = self.rewards.of([[chats[place] for place in places] for places in groups.values()])
        by_place = {
            place: reward
            for places, rewards in zip(groups.values(), found, strict=True)
            for place, reward in zip(places, rewards, strict=True)
        }
        return [by_place[place] for place in range(len(prompts))]


def check_comparable(groups: Sequence[Sequence[int]], chats: Sequence[Dialogue]) -> None:
    """Raise `UserError` unless each prompt has several completions, by their places, with the same turns before."""
    for places in groups:
        first, *others = (chats[place] for place in places)
        if not others:
            raise UserError(
                f"completion {places[0]} is the only one of its prompt in this call, and a pairwise judge compares "
                "several: make per_device_train_batch_size a multiple of num_generations, or take a pointwise judge"
            )
        if any((each.prompt, each.response[:-1]) != (first.prompt, first.response[:-1]) for each in others):
            raise UserError(
                f"completions {[*places]} of one prompt hold different turns before their last, and a pairwise judge "
                "compares answers to the same: take a pointwise judge"
            )


def chat(place: int, prompt: Chat, completion: Chat) -> Dialogue:
    """The turns of a prompt and its completion. Raises `UserError` naming the `place` where they are none."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    given = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    try:
        return dialogue("the chat", [message("the chat", said) for said in (*asked, *given)])
    except BadRow as problem:
        raise UserError(f"completion {place}: {problem}") from None


@dataclass(frozen=True)
class InProcess:
    """Rewards of a judge that is open here."""

    ranker: Ranker

    @property
    def pairwise(self) -> bool:
        return not self.ranker.judge.renderer.pointwise

    def of(self, groups: Sequence[Sequence[Dialogue]]) -> list[list[float]]:
        rows = {
            str(number): [single(each, f"{number}:{place}") for place, each in enumerate(group)]
            for number, group in enumerate(groups)
        }
        standings = self.ranker.standings(rows)
        return [standings[name].rewards.tolist() for name in rows]


@dataclass(frozen=True)
class Served:
    """Rewards of a judge that `distill.serve` serves."""

    client: httpx.Client
    about: dict[str, Any]

    @property
    def pairwise(self) -> bool:
        return bool(self.about["kind"] == "pairwise")

    def of(self, groups: Sequence[Sequence[Dialogue]]) -> list[list[float]]:
        if self.pairwise:
            return [self._ranked(group) for group in groups]
        flat = [{"messages": messages(each)} for group in groups for each in group]
        size, found = self.about["max_conversations"], []
        for begin in range(0, len(flat), size):
            found += self._asked("/v1/reward", {"conversations": flat[begin : begin + size]})["rewards"]
        ends = iter(found)
        return [[next(ends) for _ in group] for group in groups]

    def _ranked(self, group: Sequence[Dialogue]) -> list[float]:
        asked = {"messages": messages(group[0])[:-1], "responses": [each.response[-1] for each in group]}
        return [each["reward"] for each in self._asked("/v1/rank", asked)["results"]]

    def _asked(self, path: str, body: Any) -> Any:
        """A training of hours shall not end with a request: what may pass is asked again."""
        for attempt in range(1, TRIES + 1):
            try:
                with transport_errors():
                    answer = self.client.post(path, json=body)
                if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                    raise TryAgain(answer.text[:300], seconds_of(answer.headers.get("retry-after", "")))
                break
            except TryAgain as failure:
                if attempt == TRIES:
                    raise UserError(f"{self.client.base_url}{path} fails after {TRIES} tries: {failure}") from failure
                time.sleep(max(pause_after(attempt), failure.after))
        if answer.is_error:
            raise UserError(f"{answer.url} answered {answer.status_code}: {answer.text[:300]}")
        return answer.json()


def messages(chat: Dialogue) -> list[dict[str, str]]:
    """A chat's turns as messages."""
    return [
        {"role": role, "content": text}
        for turn in zip(chat.prompt, chat.response, strict=True)
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


@contextmanager
def open_reward(judge: str | Path, *, key: str | None = None, dtype: Any = "auto") -> Iterator[JudgeReward]:
    """The reward function of `judge`, which is an export's folder, or the http address of a server.

    `key` opens the server; `dtype` is what transformers computes in, of a folder. Raises `UserError` where there is no
    such judge.
    """
    if str(judge).startswith(("http://", "https://")):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=str(judge), headers=headers, timeout=SECONDS) as client:
            try:
                answer = client.get("/v1/model")
                answer.raise_for_status()
            except httpx.HTTPError as error:
                raise UserError(f"{judge} serves no judge: {error}") from error
            yield JudgeReward(Served(client, answer.json()))
    else:
        config = TransformersConfig("transformers", dtype, BATCH_TOKENS, load_in_8bit=False)
        with open_ranker(Path(judge), config) as ranker:
            yield JudgeReward(InProcess(ranker))
