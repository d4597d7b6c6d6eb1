"""A chat API as a teacher: each (id, order) once whatever happens, paid for once, and never beyond the budget."""

import json
import logging
import math
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.artefacts.manifest import read_manifest
from core.data.table import load_conversations
from core.errors import UserError
from core.records import ORDERS, Conversation, swap_labels
from core.store.reading import read_logits
from distill import prepare, teacher
from distill.config import Config
from distill.logits import logits_folder
from distill.status.inputs import logits_stages
from teachers.chat.answers import Reply, of_alternatives, of_samples
from teachers.chat.journal import NAME, Journal
from teachers.chat.prompts import ChatRenderer, renderer_of
from teachers.scorers.server import pool
from tests.chat_api import MODEL, ChatApi, answer, faults, shares, tokens
from tests.composing import configured
from tests.running import own_process

COUNT = 40
ROWS = COUNT * len(ORDERS)
SECRET = "sk-test-0123456789"
PRICES = ["teacher.chat.price_input=2", "teacher.chat.price_output=0"]  # of a million tokens
Build = Callable[..., Config]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    prepare.main(configured("+exp=smoke", f"paths.root={root}", f"data.simulate.conversations={COUNT}"))
    return root


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatApi]:
    monkeypatch.setattr(pool, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    fake = ChatApi()
    yield fake
    fake.close()


@pytest.fixture
def build(prepared: Path, api: ChatApi, request: pytest.FixtureRequest) -> Build:
    """A configuration that asks the API, with a teacher of the test's own."""
    name = f"chat_{zlib.crc32(request.node.name.encode()):x}"

    def of(*more: str) -> Config:
        chat = [
            f"teacher.chat.url={api.url}",
            "teacher.chat.model=judge-70b",
            "teacher.chat.api_key_variable=JUDGE_KEY",
        ]
        chat += ["teacher.chat.timeout_s=1", "teacher.chat.requests_in_flight=4"]
        return configured("+exp=smoke", f"paths.root={prepared}", "teacher=chat", f"teacher.name={name}", *chat, *more)

    return of


def store(config: Config) -> pl.DataFrame:
    return read_logits(logits_folder(config), "").sort("id", "order")


def journal(config: Config) -> list[dict[str, Any]]:
    path = config.root / "chat" / str(config.teacher.name) / NAME
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def expected(config: Config) -> dict[tuple[str, str], tuple[list[float], float]]:
    """The shares of the conversation's own a, b and tie, and what is outside, by id and order."""
    rows = load_conversations(config.root / "data" / config.data.name)
    found = {}
    for prompt in renderer_of(config.teacher.of_chat, config.prompt).render(rows):
        *labels, outside = shares({"messages": prompt.messages})
        own = labels if prompt.order == "ab" else list(swap_labels(labels))
        found[prompt.id, prompt.order] = own, outside
    return found


def check_complete(config: Config) -> None:
    rows = store(config)
    wanted = expected(config)
    assert len(rows) == len(wanted) == ROWS
    for name, order, logits, outside in rows.select("id", "order", "logits", "outside").iter_rows():
        own, rest = wanted[name, order]
        assert np.abs(np.exp(logits) - own).max() < 1e-5 and abs(outside - rest) < 1e-5
    keys = [(line["id"], line["order"]) for line in journal(config)]
    assert len(keys) == len(set(keys)) == ROWS


def test_spellings_are_summed_and_the_rest_is_kept_outside(api: ChatApi, build: Build) -> None:
    config = build()
    teacher.main(config)
    check_complete(config)
    manifest = read_manifest(logits_folder(config))
    assert manifest.extra["model"] == MODEL and manifest.config["chat"]["model"] == "judge-70b"
    assert manifest.prompt["template"] == renderer_of(config.teacher.of_chat, config.prompt).hash
    asked = len(api.asked)
    teacher.main(config)  # it is finished
    assert len(api.asked) == asked == ROWS
    body = api.bodies[0]
    assert (body["temperature"], body["max_tokens"], body["top_logprobs"]) == (0, 1, 20)


def test_status_agrees_with_the_stage(api: ChatApi, build: Build) -> None:
    def state(config: Config) -> str:
        (stage,) = logits_stages(config)
        return stage.state.name

    assert state(build()) == "missing"
    teacher.main(build("limit=3"))
    assert (state(build("limit=3")), state(build())) == ("done", "interrupted")
    teacher.main(build())
    assert (state(build()), state(build("teacher.chat.samples=3"))) == ("done", "stale")


@pytest.mark.long
def test_faults_cost_time_alone(api: ChatApi, build: Build) -> None:
    """429 with Retry-After, 5xx, hang-ups, answers that never come and half answers: each row is there once."""
    api.act = faults(1.5)
    config = build(*PRICES)
    teacher.main(config)
    check_complete(config)
    assert len(api.asked) > ROWS
    spent = sum(line["answer"]["prompt_tokens"] for line in journal(config))
    assert spent == store(config)["prompt_tokens"].sum()


def test_killed_and_resumed_it_asks_for_the_rest_alone(api: ChatApi, build: Build) -> None:
    config = build(*PRICES, "teacher.chat.requests_in_flight=3")
    api.act = lambda body: time.sleep(0.05)
    for kill in range(3):
        process = own_process(teacher.main, config)
        until = (kill + 1) * ROWS // 5
        while process.is_alive() and len(api.paid) < until:
            time.sleep(0.002)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    path = config.root / "chat" / str(config.teacher.name) / NAME
    with path.open("ab") as file:
        file.write(b'{"id": "half a li')  # as a kill in the middle of a write leaves it
    assert not (logits_folder(config) / "manifest.json").exists()
    teacher.main(config)
    check_complete(config)
    assert len(api.paid) <= ROWS + 3 * 3  # what was in flight, and no more, is paid for twice
    with Journal.open(path.parent, json.loads(path.read_text().splitlines()[0])["identity"], (2.0, 0.0), False) as kept:
        assert kept.spent == pytest.approx(2e-6 * store(config)["prompt_tokens"].sum())


def test_a_budget_stops_before_it_is_overdrawn_and_is_gone_on_with(api: ChatApi, build: Build) -> None:
    whole = sum(tokens({"messages": p.messages}) for p in prompts(build()))
    budget = whole * 2e-6 / 2
    with pytest.raises(
        ValueError, match=rf"budget={budget:g}.* are spent, and \d+ of {ROWS} rows are answered; raise it"
    ):
        teacher.main(build(*PRICES, f"teacher.chat.budget={budget}"))
    assert 0.8 * budget < api.spent * 2e-6 <= budget
    config = build(*PRICES, f"teacher.chat.budget={3 * budget}")
    teacher.main(config)
    check_complete(config)
    assert len(api.paid) == ROWS  # what was paid for is not asked again


def test_a_budget_that_nobody_counts_for_is_refused_at_once(api: ChatApi, build: Build) -> None:
    api.act = lambda body: {**answer(body), "usage": None}
    with pytest.raises(ValueError, match=r"budget=1 cannot be kept: .* how many tokens an answer took"):
        teacher.main(build(*PRICES, "teacher.chat.budget=1"))
    assert len(api.asked) < 10 and journal(build())  # what was answered stays


def test_what_a_filter_stops_tells_nothing_of_the_cost_of_others(api: ChatApi, build: Build) -> None:
    budget = 1.5 * prompts(build())[0].characters * 2e-6  # reserved at a token a character: for the first alone
    api.act = lambda body: (400, FILTERED) if len(api.asked) == 1 else None
    more = ["teacher.chat.max_refused=1", "teacher.chat.requests_in_flight=40"]
    with pytest.raises(ValueError, match="are spent"):
        teacher.main(build(*PRICES, *more, f"teacher.chat.budget={budget}"))
    assert 0.5 * budget < api.spent * 2e-6 <= budget


def prompts(config: Config) -> list[Any]:
    rows = load_conversations(config.root / "data" / config.data.name)
    return list(renderer_of(config.teacher.of_chat, config.prompt).render(rows))


def test_a_dry_run_tells_the_cost_and_time_of_all(api: ChatApi, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        teacher.main(build("limit=10", *PRICES))
    assert len(api.asked) == 20
    whole = sum(tokens({"messages": p.messages}) for p in prompts(build())) * 2e-6
    (told,) = [record.message for record in caplog.records if record.message.startswith(f"all {ROWS} rows would take")]
    assert float(told.split("about ")[2].split()[0]) == pytest.approx(whole, rel=0.25, abs=0.006)
    config = build(*PRICES)
    teacher.main(config)
    check_complete(config)
    assert len(api.asked) == ROWS  # the rows of the dry run count


def test_the_key_is_in_no_file_and_no_message(api: ChatApi, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        teacher.main(build("limit=3"))
        api.act = lambda body: (401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}})
        with pytest.raises(ValueError, match=r"answered 401: Incorrect API key provided: \(the key\)") as refused:
            teacher.main(build())
    assert api.keys == {f"Bearer {SECRET}"}
    assert SECRET not in caplog.text and SECRET not in str(refused.value)
    root = build().root
    assert not any(SECRET.encode() in path.read_bytes() for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "override",
    [
        f"teacher.chat.url='http://me:{SECRET}@127.0.0.1:9/v1'",
        f"teacher.chat.url='http://127.0.0.1:9/v1?key={SECRET}'",
        f"+teacher.chat.body.api_key={SECRET}",
    ],
)
def test_a_key_that_would_be_written_down_is_refused(build: Build, override: str) -> None:
    config = build(override)
    with pytest.raises(ValueError, match=r"name that in teacher\.chat\.api_key_variable") as refused:
        teacher.main(config)
    assert SECRET not in str(refused.value)
    assert not any(SECRET.encode() in path.read_bytes() for path in config.root.rglob("*") if path.is_file())


def choice(**changes: Any) -> dict[str, Any]:
    plain = {"finish_reason": "stop", "message": {"content": "A"}, "logprobs": None}
    return {"model": MODEL, "choices": [plain | changes], "usage": {"prompt_tokens": 5}}


def first_token(*alternatives: tuple[str, float]) -> dict[str, Any]:
    top = [{"token": token, "logprob": math.log(p)} for token, p in alternatives]
    return choice(logprobs={"content": [{**top[0], "top_logprobs": top}]})


def rare(*case: Any) -> Any:
    """A case that is left to `make test-long`."""
    return pytest.param(*case, marks=pytest.mark.long)


FILTERED = {"error": {"code": "content_filter", "message": "The prompt was filtered"}}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ((404, {"error": {"message": "The model `judge-70b` does not exist"}}), r"answered 404: The model `judge-70b`"),
        (choice(), r"gives no log-probabilities: set teacher\.chat\.samples=8"),
        (first_token(("Eq", 0.9), ("A", 0.1)), r"spells the label 'Equal' in several tokens, the first is 'Eq'"),
        ((400, FILTERED), r"answers hold no verdict \(content filter: \d+\), such as of .*max_refused=0\.05"),
        (choice(finish_reason="content_filter"), r"no verdict \(content filter"),
        (first_token(("**", 0.9), ("The", 0.1)), r"no verdict \(no label: \d+\)"),
        rare(choice(message={"content": None, "refusal": "I will not"}), r"no verdict \(refusal"),
        rare(choice(message={"content": ""}), r"no verdict \(empty answer"),
        rare(choice(logprobs={"content": []}), r"no verdict \(empty answer"),
        rare((200, {"hello": "world"}), r"did not answer as a chat API does: .*the address that ends before /chat"),
        rare(choice(logprobs={"content": [{"token": "A"}]}), r"log-probabilities in a form of its own"),
    ],
)  # fmt: skip
def test_bad_answers_get_one_sentence_and_what_is_paid_for_stays(
    api: ChatApi, build: Build, act: Any, message: str
) -> None:
    teacher.main(build("limit=2", "prompt.label_tokens=[A,B,Equal]"))
    before = journal(build())
    api.act = lambda body: act
    with pytest.raises(ValueError, match=message) as refused:
        teacher.main(build("prompt.label_tokens=[A,B,Equal]", "limit=12"))
    assert "\n" not in str(refused.value)
    assert journal(build())[: len(before)] == before


def test_refusals_are_not_paid_for_to_the_end(api: ChatApi, build: Build) -> None:
    api.act = lambda body: choice(finish_reason="content_filter")
    with pytest.raises(ValueError, match=r"50 of 50 answers hold no verdict"):
        teacher.main(build())
    assert len(api.asked) < ROWS - 10


def test_few_refusals_count_as_undecided(api: ChatApi, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    victim = prompts(build())[7]
    api.act = lambda body: (400, FILTERED) if body["messages"] == victim.messages else None
    teacher.main(build())
    row = store(build()).filter(id=victim.id, order=victim.order).row(0, named=True)
    assert row["outside"] == 1 and len(set(row["logits"])) == 1
    assert f"1 of {ROWS} answers hold no verdict (content filter: 1)" in caplog.text


def test_who_cannot_be_reached_is_named(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"teacher\.chat\.url=http://127\.0\.0\.1:9/v1 cannot be reached: ConnectError"
    ):
        teacher.main(build("teacher.chat.url=http://127.0.0.1:9/v1"))
    with pytest.raises(ValueError, match=r"teacher\.chat\.url=localhost:8000/v1: .*write https://host/v1"):
        teacher.main(build("teacher.chat.url=localhost:8000/v1"))
    with pytest.raises(ValueError, match=r"teacher\.chat\.model=None: name both"):
        teacher.main(build("teacher.chat.model=null"))
    with pytest.raises(ValueError, match=r"teacher\.chat\.api_key_variable=JUDGE_KEY: no such key"):
        monkeypatch.delenv("JUDGE_KEY")
        teacher.main(build())
    with pytest.raises(ValueError, match=r"budget=1: give teacher\.chat\.price_input and price_output"):
        teacher.main(build("teacher.chat.budget=1"))


@pytest.mark.long
def test_another_model_behind_the_name_is_refused(api: ChatApi, build: Build) -> None:
    teacher.main(build("limit=2"))
    api.act = lambda body: {**answer(body), "model": "judge-70b-2027-01"}
    with pytest.raises(ValueError, match=rf"answers as judge-70b-2027-01 now, and .* holds answers of {MODEL}"):
        teacher.main(build())


def test_another_question_is_another_journal(api: ChatApi, build: Build, tmp_path: Path) -> None:
    teacher.main(build("limit=2"))
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% block user %}{{ turns[-1].question }} {{ turns[-1].answer_a }} or {{ turns[-1].answer_b }}?{% endblock %}"
    )
    other = build("limit=2", f"teacher.chat.template={template}")
    with pytest.raises(ValueError, match=r"holds answers to other questions(.|\n)*prompt: there"):
        teacher.main(other)
    teacher.main(replace(other, overwrite=True))
    assert [len(body["messages"]) for body in api.bodies] == [2] * 4 + [1] * 4
    folder = other.root / "chat" / str(other.teacher.name)
    assert len([*folder.glob("answers-*.jsonl")]) == 1 and len(journal(other)) == 4


@pytest.mark.parametrize("one_at_a_time", [False, pytest.param(True, marks=pytest.mark.long)])
def test_sampled_verdicts_are_smoothed_shares(api: ChatApi, build: Build, one_at_a_time: bool) -> None:
    """Also of an API that gives one verdict however many are asked."""
    if one_at_a_time:
        api.act = lambda body: {**answer(body), "choices": answer(body)["choices"][:1]}
    config = build("teacher.chat.samples=6", "limit=10", "teacher.chat.max_refused=0.5")
    teacher.main(config)
    rows = store(config)
    assert len(rows) == 20 and len(api.asked) == 20 * (6 if one_at_a_time else 1)
    counts = (
        np.exp(rows["logits"].to_numpy().astype(float)) * (6 * (1 - rows["outside"].to_numpy()[:, None]) + 1.5) - 0.5
    )
    decided = rows["outside"].to_numpy() < 1
    assert np.abs(counts - counts.round())[decided].max() < 1e-4 and counts[decided].min() > -1e-4
    assert [body["n"] for body in api.bodies[:6]] != [6] * 6 if one_at_a_time else True


def test_verdicts_that_were_paid_for_before_a_failure_count(api: ChatApi, build: Build) -> None:
    """Of an API that gives one verdict at a time, and fails between them."""
    asked = 0

    def act(body: dict[str, Any]) -> Any:
        nonlocal asked
        asked += 1
        return 500 if asked % 5 == 0 else {**answer(body), "choices": answer(body)["choices"][:1]}

    api.act = act
    config = build("teacher.chat.samples=4", "limit=2", "teacher.chat.max_refused=1")
    teacher.main(config)
    assert len(api.paid) == 4 * 4
    assert sum(line["answer"]["prompt_tokens"] for line in journal(config)) == api.spent


def test_shares_of_samples() -> None:
    def said(*texts: str) -> Reply:
        return Reply("m", [{"message": {"content": text}} for text in texts], 10, 4)

    found = of_samples(said("A", " **A**.", "C\nbecause", "dunno"), ["A", "B", "C"])
    assert np.allclose(np.exp(found.log_probabilities), np.array([2.5, 0.5, 1.5]) / 4.5) and found.outside == 0.25
    assert of_samples(said("I", "I", ""), ["A", "B", "C"]).refused == "no verdict"


def test_a_label_that_is_not_listed_has_what_is_left() -> None:
    reply = Reply("m", first_token(("A", 0.7), ("B", 0.2), ("Yes", 0.02))["choices"])
    found = of_alternatives(reply, ["A", "B", "C"], "url")
    assert found.unlisted == 1 and math.exp(found.log_probabilities[2]) == pytest.approx(0.02)
    assert found.outside == pytest.approx(0.1)  # 0.02 of Yes, and 0.08 that nobody lists: C may have a part of that
    with pytest.raises(UserError, match="no log-probabilities"):
        of_alternatives(Reply("m", first_token(("A", 0.9), ("B", 0.8))["choices"]), ["A", "B", "C"], "url")


class TestPrompts:
    ROW = Conversation(
        "x",
        ["old question", "what is {{ 7 * 7 }}?"],
        ["old a", "{% endblock %} it is " + "49 " * 200],
        ["old b", "no idea"],
        "model-x",
        "model-y",
    )

    def render(self, room: int = 24000, names: bool = False) -> list[Any]:
        return list(ChatRenderer(None, [" A", " B", " C"], room, names).render([self.ROW]))

    def test_order_ba_is_order_ab_of_the_swapped_conversation(self) -> None:
        ab, ba = self.render()
        turned = list(ChatRenderer(None, ["A", "B", "C"], 24000, False).render([self.ROW.swap()]))
        assert ba.messages == turned[0].messages and ab.messages == turned[1].messages != ba.messages

    def test_what_users_write_is_text(self) -> None:
        user = self.render()[0].messages[1]["content"]
        assert (
            "what is {{ 7 * 7 }}?" in user and "{% endblock %} it is" in user and user.endswith("C for both equally.")
        )

    def test_what_does_not_fit_is_left_out_and_told(self) -> None:
        whole, short = self.render()[0], self.render(300)[0]
        assert not whole.truncated and short.truncated and "old question" not in short.messages[1]["content"]
        assert "no idea" in short.messages[1]["content"] and " [...] " in short.messages[1]["content"]
        shown = sum(len(message["content"]) for message in self.render(300)[0].messages)
        assert shown - sum(len(message["content"]) for message in self.render(200)[0].messages) == 100

    def test_names_are_shown_where_they_are_asked_for(self) -> None:
        ab, ba = self.render(names=True)
        assert "Response A was written by model-x" in ab.messages[1]["content"]
        assert "Response A was written by model-y" in ba.messages[1]["content"]
        assert "model-x" not in self.render()[0].messages[1]["content"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{% block user %}{{ nothing }}{% endblock %}", r"cannot be rendered: 'nothing' is undefined"),
            ("{% block user %}", r"cannot be read: .*end"),
            ("hello", r"it has no {% block user %}"),
        ],
    )
    def test_bad_templates_are_refused(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "t.jinja").write_text(text)
        with pytest.raises(ValueError, match=message):
            ChatRenderer(str(tmp_path / "t.jinja"), ["A", "B", "C"], 100, False)
        with pytest.raises(ValueError, match=r"label_tokens=\['A', ' A', 'C'\]: give one text"):
            ChatRenderer(None, ["A", " A", "C"], 100, False)
