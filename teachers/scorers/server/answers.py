"""What a vLLM server answers: read as JSON, told apart by whether asking again may help, and checked to be logits."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import mktime_tz, parsedate_tz
from typing import Any

import httpx
import numpy as np

from core.errors import UserError

LOWEST_LOGPROB = -9999.0  # vLLM's word for -inf, which JSON cannot hold


class TryAgain(Exception):
    """A failure that may pass. `after`: the seconds that the server wants to be left alone."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


@contextmanager
def transport_errors() -> Iterator[None]:
    """Raise `TryAgain` where a request was lost on its way."""
    try:
        yield
    except httpx.TransportError as error:  # time-outs, refused and broken connections
        raise TryAgain(f"{type(error).__name__} {error}".strip()) from error


def reply_of(response: httpx.Response, not_found: str = "") -> Any:
    """The JSON of an answer. Raises `TryAgain` for 429 and 5xx, `UserError` for whatever else is not 200."""
    status, url = response.status_code, response.url
    if status != httpx.codes.OK:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:500]
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            raise TryAgain(f"status {status}, {message}", seconds_of(response.headers.get("retry-after", "")))
        raise UserError(f"{url} answered {status}: {message}{not_found if status == httpx.codes.NOT_FOUND else ''}")
    try:
        return response.json()
    except ValueError as error:
        raise UserError(f"{url} answered with {response.text[:100]!r}, not JSON: is it vLLM?") from error


def seconds_of(retry_after: str) -> float:
    """A Retry-After header, seconds or a date (RFC 9110, 10.2.3), in seconds from now; 0 for what is neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    date = parsedate_tz(retry_after)
    return 0.0 if date is None else max(0.0, mktime_tz(date) - time.time())


def check_numbers(answers: np.ndarray, url: str, log_probabilities: bool) -> None:
    """Raise `UserError` unless `answers` [prompts, outputs] are finite, and log-probabilities where they should be."""
    if not np.isfinite(answers).all() or (log_probabilities and answers.min() <= LOWEST_LOGPROB):
        raise UserError(f"{url} gave logits that are not finite: serve the model with vllm serve --dtype bfloat16")
    if log_probabilities and np.logaddexp.reduce(answers, axis=1).max() > 0.01:
        raise UserError(f"{url} gave {answers[0].tolist()}, which are no log-probabilities: leave out --logprobs-mode")


def check_raw(answers: np.ndarray, url: str) -> None:
    """Raise `UserError` for probabilities: a server that does not know use_activation gives them without a word."""
    if answers.shape[1] > 1 and (answers >= 0).all() and np.abs(answers.sum(1) - 1).max() < 1e-5:
        raise UserError(
            f"{url} gave probabilities, such as {answers[0].tolist()}, and was asked for logits: it does not "
            "know use_activation; run vLLM >= 0.32 there"
        )
