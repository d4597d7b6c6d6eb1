"""What /v1/reward, /v1/rank and /v1/openrlhf take and give: messages in, rewards and ranks out."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, FailFast, Field, model_validator

from core.data.layouts.layout import BadRow
from core.data.layouts.texts import Dialogue, dialogue
from core.records import Conversation
from deploy.ranking.tournament import single
from deploy.serving.schemas import Strict, Text


class Message(Strict):
    """One message of a chat. What a system message says begins the first question."""

    role: Literal["system", "user", "assistant"]
    content: Text


Messages = Annotated[list[Message], FailFast(), Field(min_length=1)]


class Answered(Strict):
    """A chat that ends with the assistant's message, which is the one to reward; the others come before it."""

    messages: Messages

    @model_validator(mode="after")
    def _ends_with_an_answer(self) -> Self:
        turns_of(self.messages)
        return self


class RewardRequest(Strict):
    """Chats whose last messages are to be rewarded, each by itself."""

    conversations: Annotated[list[Answered], FailFast()] = Field(min_length=1)


class RewardResponse(BaseModel):
    rewards: list[float] = Field(description="in the order of the conversations; as the export's classifier gives them")
    model: str
    request_id: str


class RankRequest(Strict):
    """A chat that ends with the user's message, and responses to it."""

    messages: Messages
    responses: Annotated[list[Text], FailFast()] = Field(min_length=2)

    @model_validator(mode="after")
    def _can_be_ranked(self) -> Self:
        if self.messages[-1].role == "assistant":
            raise ValueError("messages end with the assistant's: the answers to rank go to responses")
        turns_of([*self.messages, Message(role="assistant", content=self.responses[0])])
        return self

    def conversations(self) -> list[Conversation]:
        """One for each response."""
        chats = ([*self.messages, Message(role="assistant", content=text)] for text in self.responses)
        return [single(turns_of(chat), str(place)) for place, chat in enumerate(chats)]


class Ranked(BaseModel):
    """One response. `rank` 1 is the best; equal rewards share one."""

    reward: float = Field(description="of a pairwise judge the log odds of winning, against the mean of all responses")
    low: float | None = Field(description="of the reward's 95% interval; null: a pointwise judge names no interval")
    high: float | None
    rank: int
    wins: float = Field(description="how likely it is preferred to another of the responses, a tie counted half")


class RankResponse(BaseModel):
    results: list[Ranked] = Field(description="in the order of the responses")
    order: list[int] = Field(description="the responses' places, the best first")
    comparisons: int = Field(description="pairs that were shown to the judge; 0 of a pointwise one")
    model: str
    request_id: str


class OpenRlhfRequest(BaseModel):
    """What OpenRLHF's client of a remote reward model sends: texts, each `query` its prompt and the response."""

    query: Annotated[list[Text], FailFast()] = Field(min_length=1)
    prompts: Annotated[list[Text], FailFast()]

    @model_validator(mode="after")
    def _begin_with_their_prompts(self) -> Self:
        if len(self.query) != len(self.prompts):
            raise ValueError(f"{len(self.query)} queries and {len(self.prompts)} prompts: send one prompt a query")
        for place, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True)):
            if not query.startswith(prompt):
                raise ValueError(f"query[{place}] does not begin with prompts[{place}]: its response cannot be told")
        return self


class OpenRlhfResponse(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, float] = {}


def turns_of(messages: list[Message]) -> Dialogue:
    """The turns of a chat. Raises `ValueError` where it does not begin with the user and end with the assistant."""
    try:
        return dialogue("messages", [(message.role, message.content) for message in messages])
    except BadRow as problem:
        raise ValueError(str(problem)) from None
