"""Rewards and ranks over HTTP: what the export's own model gives, and an order that does not depend on how one asks."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from transformers import AutoModelForSequenceClassification

from core.exported import open_exported
from core.records import Conversation
from deploy.serving.rewarding import without_end
from tests.deploy.serving.test_serving import in_process, pairs
from tests.serving import PAIR
from tests.tiny_exports import tiny_export

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Because of the air."},
    {"role": "user", "content": "And red at night?"},
]
RESPONSES = [pair["response_a"][0] for pair in pairs(8)]


@pytest.fixture(scope="module")
def pointwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("exports") / "tiny" / "pointwise", pointwise=True)


@pytest.fixture(scope="module")
def client(pointwise: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with in_process(pointwise, tmp_path_factory.mktemp("jobs"), max_conversations=40) as (client, _):
        yield client


@pytest.fixture(scope="module")
def pairwise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    export = tiny_export(tmp_path_factory.mktemp("exports") / "tiny" / "merged")
    with in_process(export, tmp_path_factory.mktemp("jobs"), max_conversations=40) as (client, _):
        yield client


def answered(*responses: str) -> list[dict[str, Any]]:
    return [{"messages": [*CHAT, {"role": "assistant", "content": text}]} for text in responses]


def rewards(client: Any, *responses: str) -> np.ndarray:
    answer = client.post("/v1/reward", json={"conversations": answered(*responses)})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["rewards"])


def ranks(client: Any, responses: list[str]) -> dict[str, Any]:
    answer = client.post("/v1/rank", json={"messages": CHAT, "responses": responses})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_reward_is_what_the_export_s_classifier_gives(client: Any, pointwise: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(pointwise, dtype=torch.float32)
    model.config.pad_token_id = -1
    prompt = ["Be brief.\n\nWhy is the sky blue?", "And red at night?"]
    turns = [["Because of the air.", text] for text in RESPONSES]
    rows = [Conversation(str(i), prompt, said, said) for i, said in enumerate(turns)]
    rendered = open_exported(pointwise).renderer.render(rows, ("ab",))
    with torch.inference_mode():
        expected = [model(torch.tensor([[*prompt.ids]])).logits.item() for prompt in rendered]
    found = rewards(client, *RESPONSES)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.std() > 1e-3


def test_a_pointwise_rank_is_that_of_the_rewards(client: Any) -> None:
    found = ranks(client, RESPONSES)
    expected = rewards(client, *RESPONSES)
    np.testing.assert_allclose([each["reward"] for each in found["results"]], expected, atol=1e-4)
    assert found["order"] == np.argsort(-expected).tolist() and found["comparisons"] == 0
    assert [found["results"][place]["rank"] for place in found["order"]] == [*range(1, 9)]
    assert found["results"][0]["low"] is None
    wins = [found["results"][place]["wins"] for place in found["order"]]
    assert wins == sorted(wins, reverse=True) and np.mean(wins) == pytest.approx(0.5)


def test_openrlhf_gets_the_rewards_that_the_chat_gets(client: Any) -> None:
    question = "Why is the sky blue?"
    texts = [question + RESPONSES[0], question + RESPONSES[1] + "<|im_end|>\n", question + RESPONSES[1] + "</s>"]
    sent = {"query": texts, "prompts": [question] * 3, "labels": ["", "", ""]}
    found = client.post("/v1/openrlhf", json=sent).json()
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": text}]}
        for text in (RESPONSES[0], RESPONSES[1], RESPONSES[1])
    ]
    expected = client.post("/v1/reward", json={"conversations": chats}).json()["rewards"]
    np.testing.assert_allclose(found["rewards"], expected, atol=1e-4)
    assert found["scores"] == found["rewards"] and found["extra_logs"] == {}


@pytest.mark.parametrize(
    ("response", "bare"),
    [
        ("It is. <|im_end|>\n", "It is."),
        ("It is.<|eot_id|></s>", "It is."),
        ("It is.<｜end▁of▁sentence｜>", "It is."),  # DeepSeek
        ("<end_of_turn>\n", ""),
        ("if a <b> c\n", "if a <b> c\n"),
        ("<|im_end|> is a mark", "<|im_end|> is a mark"),
    ],
)
def test_the_mark_at_the_end_is_no_part_of_a_response(response: str, bare: str) -> None:
    assert without_end(response) == bare


def test_white_space_without_end_takes_no_time() -> None:
    """As a policy says that has gone astray: it must not hold up the server."""
    began = time.perf_counter()
    assert without_end(text := "a" + "\n" * 200_000 + "b") == text
    assert time.perf_counter() - began < 2  # a search from every one of them takes a minute


def test_verdicts_and_rewards_agree(client: Any) -> None:
    verdict = client.post("/v1/judge", json={"conversations": [PAIR]}).json()["results"][0]["probabilities"]
    chat = {
        "messages": [{"role": "user", "content": PAIR["prompt"]}],
        "responses": [PAIR["response_a"], PAIR["response_b"]],
    }
    a, b = client.post("/v1/rank", json=chat).json()["results"]
    assert a["wins"] == pytest.approx(verdict["a"] + verdict["tie"] / 2, abs=1e-5)
    assert b["wins"] == pytest.approx(verdict["b"] + verdict["tie"] / 2, abs=1e-5)


def test_a_pairwise_judge_ranks_by_comparisons_of_both_orders(pairwise: Any) -> None:
    found = ranks(pairwise, RESPONSES)
    assert found["comparisons"] == 12  # of 28 pairs
    results = found["results"]
    assert [results[place]["rank"] for place in found["order"]] == [*range(1, 9)]
    assert all(each["low"] <= each["reward"] <= each["high"] for each in results)
    two = ranks(pairwise, RESPONSES[:2])
    pair = {"prompt": [CHAT[0]["content"] + "\n\n" + CHAT[1]["content"], CHAT[3]["content"]]}
    pair |= {f"response_{side}": [CHAT[2]["content"], text] for side, text in zip("ab", RESPONSES, strict=False)}
    p = pairwise.post("/v1/judge", json={"conversations": [pair]}).json()["results"][0]["probabilities"]
    gap = two["results"][0]["reward"] - two["results"][1]["reward"]
    assert expit(gap) == pytest.approx(p["a"] + p["tie"] / 2, abs=0.01)  # the prior shrinks it a little
    again = ranks(pairwise, RESPONSES[::-1])
    assert again["comparisons"] == 12


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("rank", {"messages": CHAT, "responses": ["one"]}, "at least 2 items"),
        ("rank", {"messages": CHAT, "responses": []}, "at least 2 items"),
        ("rank", {"messages": CHAT, "responses": ["word"] * 10_000}, "10000 responses to one prompt, and 1000 can be"),
        ("rank", {"messages": CHAT, "responses": ["word"] * 41}, "41 responses take 41 conversations"),
        ("rank", {"messages": CHAT[:3], "responses": ["one", "two"]}, "end with the assistant's"),
        ("rank", {"messages": [CHAT[2]], "responses": ["one", "two"]}, "end with the assistant's"),
        ("reward", {"conversations": [{"messages": CHAT}]}, "end with the assistant"),
        ("reward", {"conversations": [{"messages": [{"role": "tool", "content": "x"}]}]}, "'system', 'user' or"),
        ("reward", {"conversations": answered(*["x"] * 41)}, "send at most 40 at a time"),
        ("openrlhf", {"query": ["ab"], "prompts": ["b"]}, "query[0] does not begin with prompts[0]"),
        ("openrlhf", {"query": ["ab"], "prompts": []}, "1 queries and 0 prompts"),
    ],
)
def test_what_cannot_be_rewarded_gets_a_sentence(client: Any, path: str, body: Any, detail: str) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 422 and detail in answer.json()["detail"], answer.text


def test_a_pairwise_judge_has_no_rewards(pairwise: Any) -> None:
    answer = pairwise.post("/v1/reward", json={"conversations": answered("one")})
    assert answer.status_code == 422 and "/v1/rank" in answer.json()["detail"]
