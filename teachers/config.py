"""What `conf/teacher/` holds."""

from dataclasses import dataclass
from typing import Any, Literal

from core.bounds import Count, Natural, NonNegative, Positive, Share
from core.errors import UserError


@dataclass(frozen=True)
class MixtureConfig:
    """Several finished teachers as one."""

    teachers: list[str]
    """Other teachers by name, such as [llama70b, qwen72b]."""
    weights: list[Positive] | None
    """Weight of each, such as [2, 1]; null: all alike."""
    space: Literal["logits", "probabilities"]
    """What is averaged: the teachers' logits, or their probabilities."""


@dataclass(frozen=True)
class ChatConfig:
    """A chat model behind an OpenAI-compatible API, hosted or one's own."""

    url: str | None
    """Address of the API as far as /chat/completions, such as https://api.example.com/v1."""
    model: str | None
    """What the API calls the model."""
    api_key_variable: str | None
    """Environment variable that holds the key; null: no key is sent."""
    template: str | None
    """File with the messages, a Jinja block for each role; null: teachers/chat/judge.jinja."""
    max_characters: Count
    """Characters of a conversation that are shown; the rest is left out as in other prompts."""
    samples: Natural
    """0 reads the log-probabilities of the answer's first token; else so many verdicts are sampled for each row."""
    max_tokens: Count
    """Tokens that an answer may have: one that is to be read needs one."""
    body: dict[str, Any]
    """More keys of each request, with a plus: +teacher.chat.body.seed=1; null leaves one out."""
    requests_in_flight: Count
    """Requests that wait for an answer."""
    retries: Natural
    """How often a request is sent again after 429, 5xx, a time-out or a lost connection."""
    timeout_s: Positive
    """Seconds that an answer may take."""
    price_input: NonNegative | None
    """Price of a million tokens of prompts, in any currency; null: no cost is shown."""
    price_output: NonNegative | None
    """Price of a million tokens of answers."""
    budget: Positive | None
    """What may be spent on this teacher in all; the run stops before that; null: no limit."""
    max_refused: Share
    """Share of the answers that may hold no verdict, by a filter or for want of one; they count as undecided."""


@dataclass(frozen=True)
class StoredConfig:
    """Opinions that somebody has stored: a table with a row for each conversation, or for each response."""

    file: str | None
    """The table, in a format of docs/data.md; null: the scores of the responses in the prepared data."""
    learned_from: str
    """What gave them learned from: none of the conversations; unknown, which marks all that descends from it; or the
    column with the fold of each row: its judge learned from the other folds' rows."""


@dataclass(frozen=True)
class TeacherConfig:
    """Who gives the soft targets, and which of them a student takes."""

    name: str | None
    """Name of the teacher; logits/<name> holds what it said."""
    kind: Literal["folds", "model", "reward", "mixture", "stored", "chat"]
    """folds: fine-tuned fold teachers below `path`; model: one ready-made `model` that saw none of the rows; reward: it
    scores responses alone; mixture: other teachers' logits; stored: opinions in a file; chat: a model behind an API."""
    path: str | None
    """Folder of the fold teachers; null: <paths.root>/teachers/<name>."""
    model: str | None
    """Of kind model or reward: hub id, local folder or pip:PACKAGE."""
    folds: list[Natural]
    """Folds of the teachers that score, of kind folds; empty for the other kinds."""
    rows: Literal["out_of_fold", "in_fold"]
    """out_of_fold: each row is scored by the teachers that did not train on it; in_fold: by all, and a student of fold
    k learns from teacher k, as the LMSYS winner's did."""
    max_entropy: NonNegative | None
    """In nats: rows without votes whose teacher is less sure than this are not distilled; null: all are."""
    temperature_scaling: bool | None
    """Learn from logits divided by the temperature that fits the votes of the other folds best; null: a mixture's
    teachers alone are scaled; false: they neither."""
    rows_per_part: Count
    """Rows in a part of the store: what a crash can cost."""
    same_prompt: bool
    """Refuse targets of a teacher that was shown another template than the student."""
    merge: bool
    """Fold teachers: merge the adapter into the base; false: vLLM serves it beside the base's own files."""
    reward_l2: NonNegative
    """Kind reward, and scores of kind stored: penalty on the Bradley-Terry weights."""
    price_per_hour: NonNegative | None
    """Price of the machine for an hour, in any currency, for the cost that the progress bar shows; null: none."""
    mixture: MixtureConfig
    method: Literal["classify", "label_tokens"]
    """classify reads a score head; label_tokens the log-probabilities of `prompt.label_tokens` as the next token."""
    stored: StoredConfig | None = None
    chat: ChatConfig | None = None

    @property
    def of_stored(self) -> StoredConfig:
        """Raises `UserError` where the kind was set by hand, and its keys are not there."""
        if self.stored is None:
            raise UserError("teacher.kind=stored: give teacher=stored, which brings its keys")
        return self.stored

    @property
    def of_chat(self) -> ChatConfig:
        """Raises `UserError` as `of_stored` does."""
        if self.chat is None:
            raise UserError("teacher.kind=chat: give teacher=chat, which brings its keys")
        return self.chat


def store_name(teacher: str, scaled: bool | None) -> str:
    """The name of the logits that students learn from: those that a teacher gave, or their `scaled` ones."""
    return f"{teacher},calibrated" if scaled else teacher
