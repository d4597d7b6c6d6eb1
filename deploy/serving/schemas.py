"""What travels over HTTP, which is the OpenAPI schema, too: conversations in, verdicts and problems out."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    WithJsonSchema,
    model_validator,
)

from core.records import ORDERS, Conversation, Order

Orders = Literal["both", "ab"]
MAX_KEYS = 20


def _turns(texts: Any) -> Any:
    if not isinstance(texts, str | list):
        raise ValueError("give a text, or a list of texts, one for each turn")
    return [texts] if isinstance(texts, str) else texts


def _unicode(text: str) -> str:
    """JSON can hold halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(_unicode)]
TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
Texts = Annotated[list[Text], FailFast(), Field(min_length=1), BeforeValidator(_turns), WithJsonSchema(TEXTS)]


class Strict(BaseModel):
    """A body without unknown keys.

    Only its first faults are reported: each costs memory, and a body may hold a million.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_few_keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_KEYS:
            raise ValueError(f"{len(value)} keys; known here: {', '.join(cls.model_fields)}")
        return value


class Pair(Strict):
    """A prompt and two responses to it: one text each, or one for each turn."""

    id: Text | None = Field(None, max_length=200, description="returned with the result; null: its place in the list")
    prompt: Texts
    response_a: Texts
    response_b: Texts

    @model_validator(mode="after")
    def _has_equal_turns(self) -> Self:
        turns = {name: len(getattr(self, name)) for name in ("prompt", "response_a", "response_b")}
        if len(set(turns.values())) > 1:
            counts = ", ".join(f"{name} has {count}" for name, count in turns.items())
            raise ValueError(f"each turn needs a prompt and two responses, but {counts} (a single text is one turn)")
        if not any(text.strip() for text in self.prompt):
            raise ValueError("the prompt is empty: give what was asked")
        return self

    def conversation(self, id: str) -> Conversation:
        return Conversation(id, self.prompt, self.response_a, self.response_b)


class JudgeRequest(Strict):
    """Conversations to judge. `orders`: `both` shows each twice, so that no side gains from its place, `ab` once."""

    conversations: Annotated[list[Pair], FailFast()] = Field(min_length=1)
    orders: Orders = "both"

    @property
    def shown(self) -> tuple[Order, ...]:
        return ORDERS if self.orders == "both" else ("ab",)


class Probabilities(BaseModel):
    """How likely people are to prefer a, b, or neither."""

    a: float
    b: float
    tie: float = Field(description="0 of a judge that learned from data without ties")


class Verdict(BaseModel):
    """One conversation's result; everything refers to the request's own a and b, whichever was shown first."""

    id: str
    probabilities: Probabilities = Field(description="from the mean logits of the orders shown, recalibrated")
    verdict: Literal["a", "b", "tie"] = Field(description="the most likely; tie where a and b are equally likely")
    by_order: dict[Order, Probabilities] = Field(description="ab: a was shown first")
    flips: bool | None = Field(description="whether the verdict depends on the order; null where one was shown")
    set: list[Literal["a", "b", "tie"]] | None = Field(
        None, description="the labels that the judge cannot rule out; null of an export without thresholds"
    )
    prompt_tokens: int = Field(description="of one prompt; both orders have as many")
    truncated: bool = Field(description="whether some of the conversation did not fit into the prompt")


class Unjudged(BaseModel):
    """A conversation that has no result, and why."""

    id: str
    error: str


Result = Verdict | Unjudged


class JudgeResponse(BaseModel):
    results: list[Verdict] = Field(description="in the order of the conversations")
    model: str
    request_id: str


class JobAccepted(BaseModel):
    """A job that is on disk, so that no crash loses it."""

    id: str
    conversations: int


class JobState(BaseModel):
    """`results`: those so far, in the order of the conversations."""

    id: str
    state: Literal["waiting", "running", "done"]
    conversations: int
    finished: int
    results: list[Result]
    model: str


class Served(BaseModel):
    """The judge behind this server, and what it takes. `max_tokens`: of a prompt; longer ones are shortened.

    `kind`: a pointwise judge has rewards; both rank. `labels`: what it tells apart, a and b alone where it learned from
    data without ties. `computes_otherwise`: how far its answers are from those of the export; null where they agree (or
    while loading).
    """

    model: str
    kind: Literal["pairwise", "pointwise"]
    labels: list[str]
    computes_otherwise: str | None
    max_tokens: int
    recalibrated: bool
    coverage: float | None = Field(description="how often a set shall hold the vote; null where there are no sets")
    max_conversations: int
    max_body_bytes: int


class Health(BaseModel):
    state: Literal["loading", "ready", "draining", "failed"]


class FieldProblem(BaseModel):
    at: str
    problem: str


class Problem(BaseModel):
    """What went wrong: problem details of RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldProblem] = Field(default=[], description="what is wrong where, for invalid bodies")
