"""A real chat API: vLLM's own server with SmolLM2-Instruct, behind a proxy that misbehaves."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.scoring import to_own_order
from core.store.reading import read_logits
from distill import prepare, teacher
from distill.config import Config
from distill.logits import logits_folder
from teachers.chat.answers import AROUND
from teachers.chat.prompts import renderer_of
from teachers.scorers.server import pool
from tests.chat_api import ChatApi, faults
from tests.composing import configured
from tests.teachers.scorers.test_server import vllm_serve

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # a server takes half a minute to start, when busy several
LABELS = ["A", "B", "C"]
COUNT = 12


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "chat.log"
    with vllm_serve(smollm2, log, "--served-model-name", "smollm2", "--max-model-len", "1024") as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatApi]:
    monkeypatch.setattr(pool, "FIRST_PAUSE_SECONDS", 0.05)
    api = ChatApi(server)
    yield api
    api.close()


def config_for(root: Path, api: ChatApi, name: str, *more: str) -> Config:
    chat = [f"teacher.chat.url={api.url}", "teacher.chat.model=smollm2", "teacher.chat.requests_in_flight=4"]
    data = [f"data.simulate.conversations={COUNT}", f"paths.root={root}"]
    return configured("+exp=smoke", *data, "teacher=chat", f"teacher.name={name}", *chat, *more)


def in_process(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[float], set[str], float]:
    """Log-probabilities of the labels, all of their spellings summed; those among the likeliest 20 tokens; the rest."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(**ids).logits[0, -1].log_softmax(-1)
    values, tokens = found.topk(20)
    spelled = [tokenizer.decode([token]).strip(AROUND) for token in tokens.tolist()]
    sums = [
        float(
            np.logaddexp.reduce([v for v, text in zip(values.tolist(), spelled, strict=True) if text == label] or [-99])
        )
        for label in LABELS
    ]
    return sums, {*spelled} & {*LABELS}, 1 - sum(math.exp(value) for value in sums)


def test_log_probabilities_equal_the_model_s_own_through_faults(proxy: ChatApi, smollm2: Path, tmp_path: Path) -> None:
    proxy.act = faults(16.0)
    config = config_for(tmp_path, proxy, "chat", "prompt.label_tokens=[A,B,C]", "teacher.chat.timeout_s=8")
    prepare.main(config)
    teacher.main(config)
    rows = read_logits(logits_folder(config), "")
    assert len(rows) == 2 * COUNT < len(proxy.asked)
    from core.data.table import load_conversations

    prompts = renderer_of(config.teacher.of_chat, config.prompt).render(
        load_conversations(config.root / "data" / config.data.name)
    )
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    compared = 0
    for prompt in prompts:
        row = rows.filter(id=prompt.id, order=prompt.order).row(0, named=True)
        shown = to_own_order(np.array(row["logits"]), prompt.order)
        own, listed, outside = in_process(model, tokenizer, prompt.messages)
        for value, expected, label in zip(shown, own, LABELS, strict=True):
            if label in listed:
                assert abs(value - expected) < 1e-3, (prompt.id, label)
                compared += 1
        assert abs(row["outside"] - outside) < 1e-3
    assert compared >= 2 * COUNT


def test_a_wrong_name_and_sampled_verdicts(proxy: ChatApi, tmp_path: Path) -> None:
    config = config_for(tmp_path, proxy, "sampled", "teacher.chat.samples=4", "limit=3", "teacher.chat.max_refused=1")
    prepare.main(replace(config, limit=None))
    with pytest.raises(ValueError, match=r"answered 404: .*nobody"):
        teacher.main(config_for(tmp_path, proxy, "nobody", "teacher.chat.model=nobody"))
    teacher.main(config)
    assert len(read_logits(logits_folder(config), "")) == 6
