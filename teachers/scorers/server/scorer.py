"""The scorer for engines that run elsewhere: vLLM servers behind URLs, asked over HTTP."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import httpx
import numpy as np

from core.errors import UserError
from core.scoring import check_length
from teachers.scorers.config import ServerConfig
from teachers.scorers.server.addresses import common_model, filled_urls, headers_of
from teachers.scorers.server.answers import TryAgain, check_numbers, check_raw, reply_of, transport_errors
from teachers.scorers.server.pool import Pool, Request, given_up, pause_after

log = logging.getLogger(__name__)
CONNECT_SECONDS = 30.0
RUNNERS = {"classify": "pooling", "label_tokens": "generate"}


class ServerScorer:
    """Scores with the vLLM servers at `config.urls`, all of the same model.

    With no `label_ids` a score head gives raw logits; else it is the log-probabilities of
    `label_ids` as the next token, over the whole vocabulary. `tokens_cached` is what the servers tell of their prefix
    caches: nothing unless they run with `--enable-prompt-tokens-details`, and vLLM 0.32 counts a request's last prompt
    alone.
    """

    def __init__(
        self,
        config: ServerConfig,
        max_tokens: int,
        fold: int | None = None,
        label_ids: Sequence[int] | None = None,
        outputs: int | None = None,
    ) -> None:
        """Ask each server what it serves, with the same patience as later.

        `max_tokens` is the longest prompt, `fold` what {fold} stands for in the URLs, `outputs` how many logits a
        prompt must get (None: as many as the first gets). Raises `UserError` for settings, URLs and servers that do
        not fit.
        """
        self.server, self.max_tokens = config, max_tokens
        self.method = "classify" if label_ids is None else "label_tokens"
        self.label_ids = None if label_ids is None else list(label_ids)
        self.outputs = outputs if label_ids is None else len(label_ids)
        self.tokens_cached = 0
        self.urls = filled_urls(config.urls, fold)
        self._options: dict[str, Any] = {
            "headers": headers_of(config.api_key_variable),
            "timeout": httpx.Timeout(config.timeout_s, connect=min(CONNECT_SECONDS, config.timeout_s)),
            "limits": httpx.Limits(max_connections=None),  # the slots are the limit
            "verify": httpx.create_ssl_context(),  # reading the certificates takes longer than most requests
        }
        self._seen_raw: set[str] = set()
        # The token that is asked for has to fit in as well.
        self.model = common_model(
            {url: self._cards(url) for url in self.urls}, config.model, max_tokens + (label_ids is not None)
        )

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """As `core.scoring.Scorer` says.

        Raises `UserError` for prompts of no or too many tokens, for a request that a server refuses and for answers
        that are no logits, at once; where servers fail or do not answer, when the retries are used up.
        """
        server = self.server
        with closing(Pool(self.urls, server.requests_in_flight, server.retries, self._ask, self._options)) as pool:
            for request, answers in pool.answers(self._requests(prompts)):
                yield from zip(request.positions, answers, strict=True)

    def _requests(self, prompts: Iterable[Sequence[int]]) -> Iterator[Request]:
        waiting = enumerate(prompts)
        while pool := list(islice(waiting, self.server.prompts_per_request)):
            for position, prompt in pool:
                check_length(position, prompt, self.max_tokens)
            yield Request([position for position, _ in pool], [list(prompt) for _, prompt in pool])

    async def _ask(self, client: httpx.AsyncClient, url: str, prompts: list[list[int]]) -> np.ndarray:
        path, body = self._question(prompts)
        with transport_errors():
            response = await client.post(url + path, json=body)
        reply = reply_of(response, f"; teacher.method={self.method} needs vllm serve --runner {RUNNERS[self.method]}")
        try:
            rows = self._rows(reply)
            answers = np.array([rows[index] for index in range(len(prompts))], np.float32)
            details = (reply.get("usage") or {}).get("prompt_tokens_details") or {}
            self.tokens_cached += details.get("cached_tokens") or 0
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{url}{path} did not answer as vLLM >= 0.32 does ({error!r}): is it another server, or an older one?"
            ) from error
        self._check(answers, len(rows), url + path)
        return answers

    def _question(self, prompts: list[list[int]]) -> tuple[str, dict[str, Any]]:
        """The path and the body of a request."""
        if self.label_ids is None:
            return "/classify", {"model": self.model, "input": prompts, "use_activation": False}
        body = {"model": self.model, "prompt": prompts, "max_tokens": 1, "temperature": 0}
        # vLLM returns the labels and, at place 0, the sampled token; ids for names, since two may look the same.
        body |= {"logprobs": len(self.label_ids), "logprob_token_ids": self.label_ids}
        return "/v1/completions", body | {"return_tokens_as_token_ids": True}

    def _rows(self, reply: Any) -> dict[int, list[float]]:
        """The outputs in an answer, by the prompt's place in the request."""
        if self.label_ids is None:
            return {item["index"]: item["probs"] for item in reply["data"]}
        names = [f"token_id:{token}" for token in self.label_ids]
        found = {choice["index"]: choice["logprobs"]["top_logprobs"][0] for choice in reply["choices"]}
        return {index: [top[name] for name in names] for index, top in found.items()}

    def _check(self, answers: np.ndarray, rows: int, url: str) -> None:
        """Raise `UserError` unless `answers` [prompts, outputs], of an answer with `rows` rows, are raw logits."""
        if rows != len(answers) or answers.ndim != 2 or self.outputs not in (None, answers.shape[1]):
            raise UserError(
                f"{url} gave {rows} rows for {len(answers)} prompts, of shape {list(answers.shape[1:])}, expected "
                f"{self.outputs or 'some'} outputs each: does it serve the judge that you mean?"
            )
        self.outputs = answers.shape[1]
        check_numbers(answers, url, log_probabilities=self.label_ids is not None)
        if self.label_ids is None and url not in self._seen_raw:
            check_raw(answers, url)
            self._seen_raw.add(url)

    def _cards(self, url: str) -> dict[str, dict[str, Any]]:
        """The cards of the models that the server at `url` offers, by name."""
        with httpx.Client(**self._options) as client:
            for attempt in range(self.server.retries + 1):
                try:
                    with transport_errors():
                        response = client.get(f"{url}/v1/models")
                    return {card["id"]: card for card in reply_of(response)["data"]}
                except (KeyError, TypeError) as error:
                    raise UserError(f"{url}/v1/models is no list of models: give the URL of vllm serve") from error
                except TryAgain as failure:
                    if attempt == self.server.retries:
                        raise given_up(url, self.server.retries, failure) from failure
                    pause = max(pause_after(attempt + 1), failure.after)
                    log.warning("%s: %s; asking again in %.1f s", url, failure, pause)
                    time.sleep(pause)
        raise AssertionError(f"retries={self.server.retries}")
