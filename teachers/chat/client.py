"""Asks a chat API: many questions at a time, again where that may help, and never beyond what may be spent."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import httpx

from core.errors import UserError
from teachers.chat.answers import Answer, Reply, read_reply, verdict
from teachers.chat.prompts import ChatPrompt
from teachers.config import ChatConfig
from teachers.scorers.server.addresses import headers_of
from teachers.scorers.server.answers import TryAgain, transport_errors
from teachers.scorers.server.pool import Pool, Request, pause_after

GROUP = "teacher.chat"
PATH = "/chat/completions"
ALTERNATIVES = 20  # that OpenAI's API gives at most
SECRETS = {"api_key", "api-key", "apikey", "authorization", "password", "secret"}  # as keys of a request's body
CONNECT_SECONDS = 30.0
CONNECTS = 3  # before an address is taken for a wrong one


@dataclass(frozen=True)
class ChatClient:
    """The model `model` behind `url`, asked for one of `labels`."""

    url: str
    model: str
    labels: list[str]
    config: ChatConfig

    @classmethod
    def of(cls, config: ChatConfig, labels: list[str]) -> "ChatClient":
        """Raises `UserError` where the address or the model is not named."""
        if config.url is None or config.model is None:
            raise UserError(
                f"{GROUP}.url={config.url}, {GROUP}.model={config.model}: name both, such as "
                f"{GROUP}.url=https://api.example.com/v1 {GROUP}.model=llama-3.3-70b"
            )
        if not re.match("https?://[^/]", config.url):
            raise UserError(f"{GROUP}.url={config.url}: no http:// or https:// address; write https://host/v1")
        address, told = httpx.URL(config.url), SECRETS & {name.lower() for name in config.body}
        if address.userinfo or address.query or told:
            where = f"{GROUP}.body has {', '.join(sorted(told))}" if told else f"{GROUP}.url holds more than an address"
            raise UserError(
                f"{where}, and what is configured stands in manifests and logs: put the key into an environment "
                f"variable and name that in {GROUP}.api_key_variable"
            )
        return cls(config.url.rstrip("/").removesuffix(PATH), config.model, labels, config)

    def answers(self, prompts: Iterable[ChatPrompt]) -> Iterator[tuple[ChatPrompt, Answer]]:
        """Each prompt with its answer, as they arrive; prompts are drawn as there is room for requests.

        Raises `UserError` where the API cannot be reached or refuses, and when the retries are used up. The key is in
        no message, whatever the API repeats of it.
        """
        config, headers = self.config, headers_of(self.config.api_key_variable, GROUP)
        options: dict[str, Any] = {
            "headers": headers,
            "timeout": httpx.Timeout(config.timeout_s, connect=min(CONNECT_SECONDS, config.timeout_s)),
            "limits": httpx.Limits(max_connections=None),  # the slots are the limit
            "verify": httpx.create_ssl_context(),
        }
        key = headers.get("Authorization", "").removeprefix("Bearer ")
        secret: Callable[[str], str] = lambda text: text.replace(key, "(the key)") if key else text  # noqa: E731
        fresh = (Request([position], [prompt]) for position, prompt in enumerate(prompts))
        try:
            self._reach(options)
            with closing(
                Pool([self.url], config.requests_in_flight, config.retries, self._asker(secret), options, GROUP)
            ) as pool:
                for request, answer in pool.answers(fresh):
                    yield request.prompts[0], answer
        except UserError as error:
            raise UserError(secret(str(error))) from None

    def _reach(self, options: dict[str, Any]) -> None:
        """Raise `UserError` where nobody listens: retries are for those that have answered once."""
        for attempt in range(1, CONNECTS + 1):
            try:
                with transport_errors(), httpx.Client(**options) as client:
                    client.get(f"{self.url}/models")  # whatever it says
                return
            except TryAgain as failure:
                if attempt == CONNECTS:
                    raise UserError(f"{GROUP}.url={self.url} cannot be reached: {failure}") from failure
                time.sleep(pause_after(attempt))

    def _asker(self, secret: Callable[[str], str]) -> Callable[[httpx.AsyncClient, str, list[Any]], Any]:
        begun: dict[tuple[str, str], Reply] = {}  # verdicts that were paid for before a request failed

        async def ask(client: httpx.AsyncClient, url: str, prompts: list[ChatPrompt]) -> Answer:
            (prompt,) = prompts
            try:
                reply = await self._reply(client, prompt, begun)
            except TryAgain as failure:
                raise TryAgain(secret(str(failure)), failure.after) from None
            answer = verdict(reply, self.labels, self.config.samples, url)
            return replace(answer, truncated=prompt.truncated)

        return ask

    async def _reply(self, client: httpx.AsyncClient, prompt: ChatPrompt, begun: dict[tuple[str, str], Reply]) -> Reply:
        """What the API says to a prompt; an API that gives one verdict at a time is asked as often as is needed.

        What it has said lies in `begun` until then: after a failure no verdict is paid for twice, or left uncounted.
        """
        key = prompt.id, prompt.order
        while True:
            reply = begun.get(key, Reply(self.model, []))
            with transport_errors():
                response = await client.post(self.url + PATH, json=self.body(prompt, len(reply.choices)))
            found = read_reply(response, self.model)
            reply = begun[key] = reply.and_then(found)
            if reply.filtered or not found.choices or len(reply.choices) >= self.config.samples:
                return begun.pop(key)

    def body(self, prompt: ChatPrompt, there: int = 0) -> dict[str, Any]:
        """The request of a prompt for which so many samples are there."""
        body: dict[str, Any] = {"model": self.model, "messages": prompt.messages, "max_tokens": self.config.max_tokens}
        if self.config.samples:
            body |= {"temperature": 1, "n": self.config.samples - there}
        else:
            body |= {"temperature": 0, "logprobs": True, "top_logprobs": ALTERNATIVES}
        return {name: value for name, value in {**body, **self.config.body}.items() if value is not None}
