"""A judge as TRL's reward function: the same rewards in process and by URL, in the trainer that they are for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import deploy.rewards as rewards_module
from core.errors import UserError
from deploy.rewards import JudgeReward, Served, open_reward
from tests.serving import serving
from tests.tiny_exports import tiny_export

PROMPTS = ["Why is the sky blue?"] * 3 + ["What is a fold?"] * 2
COMPLETIONS = [
    "Because of the air.",
    "It is not.",
    "Light is scattered.",
    "A part of the data.",
    "",
]  # a policy may say nothing


def tiny(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("exports") / "tiny" / kind, pointwise=kind == "pointwise")


@pytest.fixture(scope="module", params=["pointwise", "pairwise"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def reward(export: Path) -> Iterator[JudgeReward]:
    with open_reward(export) as found:
        yield found


def test_rewards_are_the_same_in_whatever_form_and_order_they_are_asked_for(reward: JudgeReward) -> None:
    found = reward(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]] * 5)
    chats: list[Any] = [[{"role": "user", "content": text}] for text in PROMPTS]
    said: list[Any] = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    np.testing.assert_allclose(reward(prompts=chats, completions=said), found, atol=1e-5)
    backwards = reward(prompts=PROMPTS[::-1], completions=COMPLETIONS[::-1])[::-1]
    assert np.argsort(backwards[:3]).tolist() == np.argsort(found[:3]).tolist()
    assert len(set(found)) == 5


def test_what_is_no_chat_is_named(reward: JudgeReward) -> None:
    with pytest.raises(UserError, match="completion 0: the chat"):
        reward(prompts=[[{"role": "tool", "content": "x"}]], completions=["y"])


def test_a_pairwise_judge_wants_several_answers_to_the_same(export: Path, reward: JudgeReward) -> None:
    """As GRPO's processes give one completion each, all of whose rewards would be 0."""
    later = [[*said, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}] for said in (
        [{"role": "assistant", "content": "Because of the air."}],
        [{"role": "assistant", "content": "It is not."}],
    )]  # fmt: skip
    if export.name == "pointwise":
        assert len({*reward(prompts=PROMPTS[2:4], completions=COMPLETIONS[2:4])}) == 2
        assert len({*reward(prompts=PROMPTS[:2], completions=later)}) == 2
        return
    with pytest.raises(UserError, match=r"completion 0 is the only one .*multiple of num_generations"):
        reward(prompts=PROMPTS[2:], completions=COMPLETIONS[2:])
    with pytest.raises(UserError, match=r"completions \[0, 1\] .*different turns before their last"):
        reward(prompts=PROMPTS[:2], completions=later)


@pytest.mark.long
def test_a_server_gives_the_same_rewards(export: Path, reward: JudgeReward, tmp_path: Path) -> None:
    with serving(export, tmp_path) as server, open_reward(server.url) as served:
        found = served(prompts=PROMPTS, completions=COMPLETIONS)
    np.testing.assert_allclose(found, reward(prompts=PROMPTS, completions=COMPLETIONS), atol=1e-3)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="serves no judge"), open_reward("http://127.0.0.1:9"):
        pass


def test_a_server_that_is_busy_or_restarts_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training goes on; where the server stays away, one sentence tells."""
    waited: list[float] = []
    monkeypatch.setattr(rewards_module.time, "sleep", waited.append)
    faults: list[Any] = [httpx.Response(503, headers={"retry-after": "40"}, text="full"), httpx.ConnectError("refused")]

    def answer(request: httpx.Request) -> httpx.Response:
        if faults:
            fault = faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        return httpx.Response(200, json={"rewards": [0.5, 2.0]})

    client = httpx.Client(base_url="http://judge", transport=httpx.MockTransport(answer))
    reward = JudgeReward(Served(client, {"kind": "pointwise", "max_conversations": 256}))
    assert reward(prompts=PROMPTS[:2], completions=COMPLETIONS[:2]) == [0.5, 2.0]
    assert len(waited) == 2 and waited[0] >= 40
    faults[:] = [httpx.ConnectError("refused")] * 100
    with pytest.raises(UserError, match=r"http://judge/v1/reward fails after 8 tries: ConnectError refused"):
        reward(prompts=PROMPTS[:2], completions=COMPLETIONS[:2])


@pytest.mark.long
@pytest.mark.timeout(300)
def test_grpo_learns_from_it(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    data = Dataset.from_dict({"prompt": PROMPTS})
    settings = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=12,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    with open_reward(tiny("pointwise", tmp_path_factory)) as reward:
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        trainer = GRPOTrainer(
            str(tiny_llama), reward_funcs=reward, args=settings, train_dataset=data, processing_class=tokenizer
        )
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
    steps = [row for row in trainer.state.log_history if "rewards/JudgeReward/mean" in row]
    assert [row["step"] for row in steps] == [1, 2] and all(np.isfinite(row["reward"]) for row in steps)
    assert any(row["reward_std"] > 0 for row in steps)
    assert any(not np.array_equal(before[name], value.detach()) for name, value in trainer.model.named_parameters())
