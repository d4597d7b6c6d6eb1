"""What a chat API answers: a verdict from the log-probabilities of its first token, or from sampled verdicts.

All spellings of a label count: tokens that are the label once white space and punctuation around it are gone. What
goes to other tokens is `outside`.
"""

import math
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from core.errors import UserError
from core.records import LABELS
from teachers.scorers.server.answers import TryAgain, reply_of

AROUND = string.whitespace + string.punctuation + "▁Ġ"
FILTERED = ("content_filter", "content_policy", "ResponsibleAIPolicyViolation")  # in a refusal of status 400
SMOOTHING = 0.5  # of a verdict, added to each label's count: Jeffreys' prior
UNDECIDED = [-math.log(len(LABELS))] * len(LABELS)


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict as shown: log-probabilities of the labels, and the mass `outside` of them.

    `refused`: why there is none, and the labels are alike; `unlisted`: labels that were not among the alternatives;
    `truncated`: not all of the conversation was shown; `model`: as the API calls it.
    """

    model: str
    log_probabilities: list[float]
    outside: float
    prompt_tokens: int
    completion_tokens: int
    refused: str = ""
    unlisted: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What an API said to one request, and the tokens that it counted."""

    model: str
    choices: list[Any]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    filtered: bool = False

    def and_then(self, other: "Reply") -> "Reply":
        """Both replies to a question that was asked twice, as one."""
        paid = self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens
        return Reply(other.model, [*self.choices, *other.choices], *paid, self.filtered or other.filtered)

    def without_verdict(self, why: str) -> Answer:
        return Answer(self.model, UNDECIDED, 1.0, self.prompt_tokens, self.completion_tokens, why)


def read_reply(response: httpx.Response, model: str) -> Reply:
    """The reply in an HTTP response to a question for `model`.

    Raises `TryAgain` where asking again may help, and `UserError` for what no further try can mend.
    """
    if response.status_code == httpx.codes.BAD_REQUEST and any(word in response.text for word in FILTERED):
        return Reply(model, [], filtered=True)
    if response.status_code != httpx.codes.OK:
        reply_of(response)
    try:
        reply = response.json()
    except ValueError as error:
        raise TryAgain(f"no whole JSON: {response.text[-40:]!r}") from error
    try:
        usage = reply.get("usage") or {}
        paid = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        return Reply(str(reply.get("model") or model), [dict(choice) for choice in reply["choices"]], *paid)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{response.url} did not answer as a chat API does: {response.text[:200]!r}; give the address that ends "
            "before /chat/completions"
        ) from error


def verdict(reply: Reply, labels: Sequence[str], samples: int, url: str) -> Answer:
    """The answer to a question of which `samples` verdicts were asked; 0: the alternatives to the first token."""
    if reply.filtered:
        return reply.without_verdict("content filter")
    if samples:
        return of_samples(reply, labels)
    if not reply.choices:
        return reply.without_verdict("empty answer")
    try:
        return of_alternatives(reply, labels, url)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{url} gave log-probabilities in a form of its own ({error!r}): set teacher.chat.samples=8"
        ) from error


def of_alternatives(reply: Reply, labels: Sequence[str], url: str) -> Answer:
    """From the alternatives to the first token; a label that is not among them has no more than the least of these."""
    choice = reply.choices[0]
    if reason := refusal(choice):
        return reply.without_verdict(reason)
    logprobs = choice.get("logprobs")
    if not logprobs or logprobs.get("content") is None:
        if not text_of(choice):
            return reply.without_verdict("empty answer")
        raise UserError(f"{url} gives no log-probabilities: set teacher.chat.samples=8, which samples verdicts instead")
    if not logprobs["content"]:
        return reply.without_verdict("empty answer")
    first = logprobs["content"][0]
    alternatives = [(str(each["token"]), float(each["logprob"])) for each in first["top_logprobs"]]
    if all(token != first["token"] for token, _ in alternatives):
        alternatives.append((str(first["token"]), float(first["logprob"])))
    mass = math.fsum(math.exp(value) for _, value in alternatives)
    if math.isnan(mass) or mass > 1.01:
        raise UserError(f"{url} gave {alternatives}, which are no log-probabilities: set teacher.chat.samples=8")
    check_spelling(max(alternatives, key=lambda each: each[1])[0].strip(AROUND), labels, url)

    found = [[value for token, value in alternatives if token.strip(AROUND) == label] for label in labels]
    if not any(found):
        return reply.without_verdict("no label")
    least = min((value for _, value in alternatives if math.isfinite(value)), default=0.0)
    rest = min(least, math.log(max(1 - mass, 1e-12)))
    values = [float(np.logaddexp.reduce(each)) if each else rest for each in found]
    values = [max(value, -1e3) for value in values]  # an API may say -inf, or its own word for it
    outside = max(0.0, 1 - math.fsum(math.exp(value) for each in found for value in each))
    paid = reply.prompt_tokens, reply.completion_tokens
    return Answer(reply.model, values, outside, *paid, unlisted=sum(not each for each in found))


def check_spelling(likeliest: str, labels: Sequence[str], url: str) -> None:
    """Raise `UserError` where the likeliest token is only the beginning of a label."""
    for label in labels:
        if likeliest and likeliest not in labels and label.startswith(likeliest):
            raise UserError(
                f"{url} spells the label {label!r} in several tokens, the first is {likeliest!r}: choose labels of one "
                "letter, as in 'prompt.label_tokens=[A,B,C]'"
            )


def of_samples(reply: Reply, labels: Sequence[str]) -> Answer:
    """From sampled verdicts, as smoothed shares; those that name no label are outside."""
    words = Counter(next(iter(text_of(choice).strip(AROUND).split()), "").strip(AROUND) for choice in reply.choices)
    counts = [words[label] for label in labels]
    if not sum(counts):
        return reply.without_verdict(next((why for c in reply.choices if (why := refusal(c))), "no verdict"))
    total = sum(counts) + SMOOTHING * len(labels)
    shares = [math.log((count + SMOOTHING) / total) for count in counts]
    outside = 1 - sum(counts) / words.total()
    return Answer(reply.model, shares, outside, reply.prompt_tokens, reply.completion_tokens)


def refusal(choice: Any) -> str:
    """Why a choice holds no verdict; "" where nothing says so."""
    if choice.get("finish_reason") == "content_filter":
        return "content filter"
    return "refusal" if (choice.get("message") or {}).get("refusal") else ""


def text_of(choice: Any) -> str:
    """What a choice says; nothing where it refuses."""
    return "" if refusal(choice) else str((choice.get("message") or {}).get("content") or "")
