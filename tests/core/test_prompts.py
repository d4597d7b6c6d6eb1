"""The renderer's promises: never over budget, nothing essential lost, the same for both orders, deaf to user markup."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from core import prompts
from core.errors import UserError
from core.prompts import UNNAMED, PromptConfig, Renderer, share_room
from core.records import Conversation
from core.words import count_words
from tests.composing import TEMPLATE, configured
from tests.tiny_models import BOS, EOS, PAD

CONFIG = PromptConfig(
    max_tokens=96, min_turn_tokens=20, show_models=False, label_tokens=["A", "B", "C"], template=TEMPLATE
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|pad|>' + m['role'] + '\n' + m['content'] + '<|eos|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|pad|>assistant\n' }}{% endif %}"
)
PRIVILEGED = replace(CONFIG, max_tokens=144, show_models=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=120) | st.sampled_from(
    [BOS, EOS, PAD, f"x{EOS}y", "\nA: ", ""]
)
LENGTH = st.integers(0, 400)
fixtures_are_constant = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = draw(st.integers(1, 4))
    prompt, a, b = (draw(st.lists(TEXT, min_size=turns, max_size=turns)) for _ in range(3))
    name = st.none() | TEXT
    return Conversation("1", prompt, a, b, draw(name), draw(name))


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer_folder: Path) -> Renderer:
    return Renderer(CONFIG, tiny_tokenizer_folder)


@pytest.fixture(scope="module")
def privileged(tiny_tokenizer_folder: Path) -> Renderer:
    return Renderer(PRIVILEGED, tiny_tokenizer_folder)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_tokenizer_folder / "tokenizer.json"))


@fixtures_are_constant
@given(conversation=conversations())
def test_never_over_budget_and_truncated_says_whether_anything_is_missing(
    renderer: Renderer, tokenizer: Tokenizer, conversation: Conversation
) -> None:
    for rendered in renderer.render([conversation]):
        text = tokenizer.decode(rendered.ids, skip_special_tokens=False)
        assert len(rendered.ids) <= CONFIG.max_tokens
        whole = TEMPLATE.instruction + "".join(
            f"{TEMPLATE.question}{q}{TEMPLATE.answer_a}{first}{TEMPLATE.answer_b}{second}"
            for q, first, second in zip(
                conversation.prompt,
                *(
                    (conversation.response_a, conversation.response_b)
                    if rendered.order == "ab"
                    else (conversation.response_b, conversation.response_a)
                ),
                strict=True,
            )
        )
        assert (text == whole + TEMPLATE.verdict) == (not rendered.truncated)


@fixtures_are_constant
@given(conversation=conversations())
def test_order_ba_is_order_ab_of_the_swapped_conversation(
    renderer: Renderer, privileged: Renderer, conversation: Conversation
) -> None:
    for each in (renderer, privileged):
        ab, ba = each.render([conversation])
        swapped_ab, swapped_ba = each.render([conversation.swap()])
        assert (ab.ids, ba.ids) == (swapped_ba.ids, swapped_ab.ids)


@fixtures_are_constant
@given(conversation=conversations())
def test_a_marker_tells_how_many_words_the_whole_response_has(
    tiny_tokenizer_folder: Path, tokenizer: Tokenizer, conversation: Conversation
) -> None:
    """However much of it is cut, in either order, within the budget."""
    telling = replace(TEMPLATE, answer_a="\nA of {words}: ", answer_b="\nB of {words}: ")
    both = Renderer(replace(CONFIG, max_tokens=192, template=telling), tiny_tokenizer_folder)
    alone = Renderer(replace(CONFIG, template=replace(telling, answer_b=None)), tiny_tokenizer_folder)
    sides = {"ab": (conversation.response_a, conversation.response_b)}
    sides["ba"] = sides["ab"][::-1]
    for pairwise, pointwise in zip(both.render([conversation]), alone.render([conversation]), strict=True):
        first, second = sides[pairwise.order]
        for rendered, budget, told in (
            (pairwise, 192, f"\nA of {count_words(first[-1])}: "),
            (pairwise, 192, f"\nB of {count_words(second[-1])}: "),
            (pointwise, 96, f"\nA of {count_words(first[-1])}: "),
        ):
            assert told in tokenizer.decode(rendered.ids, skip_special_tokens=False)
            assert len(rendered.ids) <= budget


def test_how_words_are_counted_is_in_the_hashes_of_those_who_tell_them(
    tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling = replace(CONFIG, template=replace(TEMPLATE, answer_a="\nA of {words}: "))
    plain, told = (Renderer(config, tiny_tokenizer_folder) for config in (CONFIG, telling))
    before = plain.hashes, told.hashes
    monkeypatch.setattr(prompts, "WORDS_VERSION", prompts.WORDS_VERSION + 1)
    assert plain.hashes == before[0], "artefacts of before stay readable"
    assert not before[1].items() & told.hashes.items()


def test_no_other_text_tells_words(tiny_tokenizer_folder: Path) -> None:
    template = replace(TEMPLATE, verdict="\nBest of {words}:")
    with pytest.raises(
        UserError, match=r"prompt\.template\.verdict holds \{words\}, which answer_a and answer_b alone"
    ):
        Renderer(replace(CONFIG, template=template), tiny_tokenizer_folder)


@fixtures_are_constant
@given(conversation=conversations())
def test_models_are_named_before_the_verdict_within_the_budget(
    privileged: Renderer, tokenizer: Tokenizer, conversation: Conversation
) -> None:
    for rendered in privileged.render([conversation]):
        assert len(rendered.ids) <= PRIVILEGED.max_tokens
        assert not {tokenizer.token_to_id(t) for t in (BOS, EOS, PAD)} & set(rendered.ids)
    named = replace(conversation, model_a="gpt-4", model_b=None)
    for rendered, names in zip(privileged.render([named]), (("gpt-4", UNNAMED), (UNNAMED, "gpt-4")), strict=True):
        ending = f"{TEMPLATE.model_a}{names[0]}{TEMPLATE.model_b}{names[1]}{TEMPLATE.verdict}"
        assert tokenizer.decode(rendered.ids).endswith(ending)


@fixtures_are_constant
@given(conversation=conversations())
def test_special_tokens_in_user_text_stay_plain_text(
    renderer: Renderer, tokenizer: Tokenizer, conversation: Conversation
) -> None:
    special = {tokenizer.token_to_id(t) for t in (BOS, EOS, PAD)}
    for rendered in renderer.render([conversation]):
        assert not special & set(rendered.ids)


@given(q=LENGTH, a=LENGTH, b=LENGTH, room=st.integers(3, 300))
def test_room_is_shared_fairly(q: int, a: int, b: int, room: int) -> None:
    shown = share_room(q, a, b, room)
    assert sum(shown) <= room
    assert share_room(q, b, a, room) == (shown[0], shown[2], shown[1])
    for length, whole in zip(shown, (q, a, b), strict=True):
        assert min(whole, 1) <= length <= whole  # a text is never dropped entirely
    assert shown[0] == q or shown[0] >= room // 3  # the question keeps its third
    if shown[1] < a and shown[2] < b:
        assert shown[1] == shown[2]  # only the longer answer is cut, until both are equally long
    if sum(shown) < room - 1:
        assert shown == (q, a, b)  # nothing is cut while there is room


def test_newest_round_is_kept_and_long_texts_are_cut_in_their_middle(renderer: Renderer, tokenizer: Tokenizer) -> None:
    long = " ".join(f"word{i}" for i in range(100))
    conversation = Conversation("1", ["old question", "new question"], ["old a", long], ["old b", "short"])
    text = tokenizer.decode(next(renderer.render([conversation])).ids)
    assert "new question" in text and "old question" not in text and TEMPLATE.omitted in text
    assert "word0" in text and "word99" in text and TEMPLATE.cut in text and "word50" not in text
    assert "short" in text and text.endswith(TEMPLATE.verdict)


def test_hashes_tell_template_budget_and_tokenizer_apart(
    renderer: Renderer, tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    assert Renderer(CONFIG, tiny_tokenizer_folder).hashes == renderer.hashes
    longer = Renderer(replace(CONFIG, max_tokens=97), tiny_tokenizer_folder).hashes
    assert longer["template"] == renderer.hashes["template"] and longer["prompt"] != renderer.hashes["prompt"]
    other = Renderer(replace(CONFIG, template=replace(TEMPLATE, verdict="?")), tiny_tokenizer_folder).hashes
    assert other["template"] != renderer.hashes["template"] and other["prompt"] != renderer.hashes["prompt"]
    naming = Renderer(replace(CONFIG, max_tokens=144, show_models=True), tiny_tokenizer_folder).hashes
    assert naming["template"] == renderer.hashes["template"]  # its student is shown the same conversation
    assert naming["prompt"] != Renderer(replace(CONFIG, max_tokens=144), tiny_tokenizer_folder).hashes["prompt"]
    text = (tiny_tokenizer_folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true', 1))
    assert Renderer(CONFIG, tmp_path).hashes["prompt"] != renderer.hashes["prompt"]


def test_impossible_budget_and_missing_tokenizer_are_refused(tiny_tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt.max_tokens=10: .* at least \d+"):
        Renderer(replace(CONFIG, max_tokens=10), tiny_tokenizer_folder)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        Renderer(CONFIG, tmp_path)


@pytest.mark.parametrize("name", ["chat", "pointwise_chat"])
def test_a_prompt_takes_the_tokenizer_s_own_chat_template(
    name: str, tiny_tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    own = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    own.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHAT)
    prompt = configured("+exp=smoke", f"prompt={name}").prompt
    renderer, conversation = Renderer(prompt, tmp_path), Conversation("1", ["Why?"], ["So."], [f"{EOS}No."])
    answers = {"ab": ("So.", f"{EOS}No."), "ba": (f"{EOS}No.", "So.")}
    for rendered in renderer.render([conversation]):
        t, (first, second) = prompt.template, answers[rendered.order]
        asked = f"{t.instruction}{t.question}Why?{t.answer_a}{first}"
        asked += t.verdict if t.answer_b is None else f"{t.answer_b}{second}{t.verdict}"
        content = asked.removeprefix("{user}").removesuffix("{assistant}")
        chat = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        assert tokenizer.decode(rendered.ids, skip_special_tokens=False) == chat
        special = [tokenizer.id_to_token(i) for i in rendered.ids if i in own.all_special_ids]
        assert special == [BOS, PAD, EOS, PAD]  # those of the chat, none of a text
    (tmp_path / "chat_template.jinja").write_text(CHAT.replace("assistant", "model"))
    other = Renderer(prompt, tmp_path).hashes
    assert other["template"] == renderer.hashes["template"] and other["prompt"] != renderer.hashes["prompt"]
    with pytest.raises(ValueError, match="has no chat template: give a prompt that spells"):
        Renderer(prompt, tiny_tokenizer_folder)


def test_a_template_may_hold_special_tokens(tiny_tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    chat = replace(CONFIG, template=replace(TEMPLATE, instruction=f"{BOS}user\n", verdict=f"{EOS}assistant\n"))
    (rendered, _) = Renderer(chat, tiny_tokenizer_folder).render([Conversation("1", [BOS], [EOS], ["x"])])
    special = [i for i in rendered.ids if i in {tokenizer.token_to_id(t) for t in (BOS, EOS, PAD)}]
    assert special == [tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)]


def test_the_markers_before_answers_may_hold_special_tokens(tiny_tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    """A chat that shows the response as the assistant's own turn, with how many words it has."""
    for words in ("", "{words} words: "):
        texts = replace(TEMPLATE, answer_a=f"{EOS}{PAD}assistant\n{words}", answer_b=None, verdict=f"{EOS}{PAD}judge\n")
        (rendered, _) = Renderer(replace(CONFIG, template=texts), tiny_tokenizer_folder).render(
            [Conversation("1", ["Why?"], [f"{EOS} so"], ["x"])]
        )
        own = {tokenizer.token_to_id(t): t for t in (BOS, EOS, PAD)}
        assert [own[i] for i in rendered.ids if i in own][-4:] == [EOS, PAD, EOS, PAD]
        assert f"{EOS}{PAD}assistant\n{words.format(words=2)}" in tokenizer.decode(
            rendered.ids, skip_special_tokens=False
        )
