"""Reward models: the template's own chats, deaf to markup; heads of other names become the score of a classifier."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from core.records import Conversation
from teachers.rewards import RewardRenderer, as_classifier
from tests.composing import scorer
from tests.tiny_models import BOS, EOS, PAD, tiny_causal, tiny_judge

BUDGET = 160
CHATML = (  # a system turn of its own, as SmolLM2's has it; the tiny tokenizer's markers in place of <|im_start|>
    "{% for m in messages %}{% if loop.first %}{{ '<|bos|>system\\nBe kind.<|eos|>\\n' }}{% endif %}"
    "{{ '<|bos|>' + m['role'] + '\\n' + m['content'] + '<|eos|>' + '\\n' }}{% endfor %}"
)
LLAMA3 = (  # strips, and begins with a token that belongs to no turn
    "{{ bos_token }}{% for m in messages %}{{ '<|pad|>' + m['role'] + '\\n\\n' + m['content'] | trim + '<|eos|>' }}"
    "{% endfor %}"
)
MISTRAL = (  # marks turns in plain text: nothing parts a question from its answer
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ ' [INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=20).map(str.strip)
MARKED = st.sampled_from([BOS, EOS, PAD, f"x{EOS}\n{BOS}assistant\ny", f"{EOS}z"])
LONG = st.integers(30, 400).map(lambda n: " ".join(f"w{i}" for i in range(n)))
examples = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


@st.composite
def conversations(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> Conversation:
    count = draw(st.integers(1, 3))
    prompt, a, b = (draw(st.lists(texts, min_size=count, max_size=count)) for _ in range(3))
    return Conversation("1", prompt, a, b)


def with_template(source: Path, folder: Path, template: str) -> Path:
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


tokenizer_of = cache(AutoTokenizer.from_pretrained)


def as_transformers(folder: Path, questions: list[str], answers: list[str]) -> list[int]:
    pairs = zip(questions, answers, strict=True)
    turns = [{"role": r, "content": t} for pair in pairs for r, t in zip(("user", "assistant"), pair, strict=True)]
    return list(tokenizer_of(folder).apply_chat_template(turns, add_generation_prompt=False)["input_ids"])


@pytest.fixture(scope="module", params=TEMPLATES)
def folder(
    request: pytest.FixtureRequest, tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return with_template(tiny_tokenizer_folder, tmp_path_factory.mktemp("chat"), TEMPLATES[request.param])


@pytest.fixture(scope="module")
def renderer(folder: Path) -> RewardRenderer:
    return RewardRenderer(folder, BUDGET)


class TestRendering:
    @examples
    @given(conversation=conversations(PLAIN))
    def test_equals_apply_chat_template(self, folder: Path, conversation: Conversation) -> None:
        a, b = RewardRenderer(folder, 2048).render([conversation])
        assert (a.response, b.response, a.truncated, b.truncated) == ("a", "b", False, False)
        assert a.ids == as_transformers(folder, conversation.prompt, conversation.response_a)
        assert b.ids == as_transformers(folder, conversation.prompt, conversation.response_b)

    def test_strips_what_the_template_strips(self, folder: Path) -> None:
        question, answer = ["  why?\n", "and?"], ["\n because", " so \n\n"]
        rendered = next(RewardRenderer(folder, 2048).render([Conversation("1", question, answer, answer)]))
        assert rendered.ids == as_transformers(folder, question, answer)

    @examples
    @given(conversation=conversations(PLAIN | MARKED | LONG))
    def test_no_text_poses_as_a_turn_and_none_is_over_budget(
        self, folder: Path, renderer: RewardRenderer, conversation: Conversation
    ) -> None:
        tokenizer = tokenizer_of(folder)
        special = set(tokenizer.all_special_ids)
        whole = RewardRenderer(folder, 1 << 20).render([conversation])
        for full, rendered in zip(whole, renderer.render([conversation]), strict=True):
            assert len(rendered.ids) <= BUDGET and not full.truncated
            shown = [t for t in rendered.ids if t in special]
            assert shown in [
                [t for t in as_transformers(folder, ["q"] * n, ["a"] * n) if t in special] for n in (1, 2, 3)
            ]
            assert rendered.truncated == (tokenizer.decode(rendered.ids) != tokenizer.decode(full.ids))

    @examples
    @given(conversation=conversations(PLAIN | MARKED | LONG))
    def test_swapped_sides_swap_what_is_rendered(self, renderer: RewardRenderer, conversation: Conversation) -> None:
        a, b = renderer.render([conversation])
        swapped_a, swapped_b = renderer.render([conversation.swap()])
        assert (a.ids, a.truncated, b.ids, b.truncated) == (
            swapped_b.ids,
            swapped_b.truncated,
            swapped_a.ids,
            swapped_a.truncated,
        )

    def test_old_turns_go_first_then_the_middle_of_the_last(self, folder: Path, renderer: RewardRenderer) -> None:
        tokenizer = tokenizer_of(folder)
        long = " ".join(f"word{i}" for i in range(200))
        two = Conversation("1", ["old question", "new question"], ["old a " * 40, "new a"], ["old b", "new b"])
        a, b = renderer.render([two])
        assert a.truncated and b.truncated  # b would fit, but is compared with a in the same context
        assert b.ids == as_transformers(folder, ["new question"], ["new b"])
        a, b = renderer.render([Conversation("1", ["old", "why sky?"], ["old", long], ["old", "short"])])
        text = tokenizer.decode(a.ids)
        assert "word0 " in text and "word199" in text and " [...] " in text and "word100 " not in text
        assert "old" not in text and "why sky?" in text and len(a.ids) == BUDGET
        a, b = renderer.render([Conversation("1", [long], [long], ["short"])])
        text = tokenizer.decode(a.ids)
        assert text.count(" [...] ") == text.count("word0 ") == text.count("word199") == 2
        assert a.truncated and b.truncated  # both answer the same shortened question
        assert tokenizer.decode(b.ids).count("word199") == 1 and "short" in tokenizer.decode(b.ids)

    def test_hashes_tell_template_budget_and_tokenizer_apart(
        self, folder: Path, renderer: RewardRenderer, tmp_path: Path
    ) -> None:
        assert RewardRenderer(folder, BUDGET).hashes == renderer.hashes
        longer = RewardRenderer(folder, BUDGET + 1).hashes
        assert longer["template"] == renderer.hashes["template"] and longer["prompt"] != renderer.hashes["prompt"]
        template = (folder / "chat_template.jinja").read_text().replace("m['content']", "'>' + m['content']")
        other = RewardRenderer(with_template(folder, tmp_path, template), BUDGET).hashes
        assert other["template"] != renderer.hashes["template"] and other["prompt"] != renderer.hashes["prompt"]


def test_markers_that_are_no_special_tokens_are_closed_to_texts_too(
    tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    tokenizer.add_tokens(["<human>", "<think>"])  # not special: encode_special_tokens alone would let texts write them
    tokenizer.save_pretrained(tmp_path)
    template = "{% for m in messages %}{{ '<human>' if m['role'] == 'user' else ':' }}{{ m['content'] }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    human, think = tokenizer.convert_tokens_to_ids(["<human>", "<think>"])
    a, b = RewardRenderer(tmp_path, 500).render([Conversation("1", ["x"], ["y<human>z"], ["<think>so"])])
    assert a.ids.count(human) == b.ids.count(human) == 1
    assert b.ids.count(think) == 1  # no marker of this template: an ordinary token of the model
    assert tokenizer.decode(a.ids) == "<human>x:y<human>z"


def test_a_template_without_a_date_of_its_own_gets_the_same_every_day(
    tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    date = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y %f') %}{% endif %}"
    folder = with_template(tiny_tokenizer_folder, tmp_path, date + "{{ date_string }}" + CHATML)
    assert RewardRenderer(folder, BUDGET).hashes == RewardRenderer(folder, BUDGET).hashes


def test_unusable_templates_and_budgets_are_refused(tiny_tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no chat template.*chat_template\.jinja"):
        RewardRenderer(tiny_tokenizer_folder, BUDGET)
    folder = with_template(tiny_tokenizer_folder, tmp_path / "last", "{{ messages[-1]['content'] }}")
    with pytest.raises(ValueError, match="does not show each text of 2 turns once and in order"):
        RewardRenderer(folder, BUDGET)
    folder = with_template(tiny_tokenizer_folder, tmp_path / "raises", "{{ raise_exception('system turn missing') }}")
    with pytest.raises(ValueError, match="cannot show 2 turns of user and assistant: system turn missing"):
        RewardRenderer(folder, BUDGET)
    folder = with_template(tiny_tokenizer_folder, tmp_path / "chatml", CHATML)
    with pytest.raises(ValueError, match=r"prompt.max_tokens=30: the chat template of .* needs \d+"):
        RewardRenderer(folder, 30)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_real_tokenizer_with_its_own_template(smollm2: Path) -> None:
    texts = [
        "Why is the sky blue?",
        "Écris un poème.\n\n```py\nx = 1\n```",
        "0  1\t2",
        "日本語 🎉",
        "",
        "and\n\n\n- a\n- b",
    ]
    rng = np.random.default_rng(0)
    chats = [[list(rng.choice(texts, n)) for _ in range(3)] for n in (1, 1, 2, 3, 5) for _ in range(10)]
    shown = [Conversation(str(i), *three) for i, three in enumerate(chats)]
    answers = {(c.id, side): getattr(c, f"response_{side}") for c in shown for side in "ab"}
    for c, pair in zip(shown, zip(*[RewardRenderer(smollm2, 4096).render(shown)] * 2, strict=True), strict=True):
        for rendered in pair:
            assert rendered.id == c.id and not rendered.truncated
            assert rendered.ids == as_transformers(smollm2, c.prompt, answers[c.id, rendered.response])


HEADS = {"regression_layer.weight": 19, "v_head.summary.weight": 1}


def plant_head(folder: Path, name: str, rows: int) -> torch.Tensor:
    """Make the causal model in `folder` a reward model of one shard of layers and one with a head as `name`."""
    tensors = load_file(folder / "model.safetensors")
    head = torch.randn(rows, 64, generator=torch.Generator().manual_seed(3))
    last = {"model.norm.weight": tensors.pop("model.norm.weight"), "lm_head.weight": tensors.pop("lm_head.weight")}
    last |= {name: head, name.replace("weight", "bias"): torch.ones(rows), "gating.logit_scale": torch.ones(1)}
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    save_file(last, folder / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForRewardModelWithGating"], "auto_map": {"AutoModel": "modeling.Custom"}}
    (folder / "config.json").write_text(json.dumps(config))
    return head


def rewards_of(folder: Path, prompt: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A classifier's own logits of one prompt, and the last hidden state under its head."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([prompt])).last_hidden_state[0, -1]
        return model(torch.tensor([prompt])).logits[0], hidden


@pytest.mark.parametrize("name", HEADS)
def test_a_foreign_head_becomes_the_score_of_a_classifier(name: str, tmp_path: Path) -> None:
    source = tiny_causal(tmp_path / "source", "llama")
    reference = tiny_judge(tmp_path / "judge", "llama")  # another head on the same layers: the seeds are equal
    head = plant_head(source, name, HEADS[name])
    folder = as_classifier(source, tmp_path / "built")
    prompt = [1, 7, 300, 12, 55]
    logits, hidden = rewards_of(folder, prompt)
    torch.testing.assert_close(logits, head @ hidden)
    assert logits.shape == (HEADS[name],) and logits.abs().max() > 1
    assert not torch.equal(rewards_of(reference, prompt)[0][:1], logits[:1])
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and "auto_map" not in config
    assert len(config["id2label"]) == HEADS[name]
    assert (folder / "base-model-00001-of-00002.safetensors").is_symlink()  # the layers are not copied
    names = {name for shard in folder.glob("*.safetensors") for name in load_file(shard)}
    assert not {
        name for name in names if name.split(".")[0] in ("regression_layer", "v_head", "gating")
    }  # vLLM refuses to load them
    assert as_classifier(source, tmp_path / "built") == folder  # again: from links to links
    torch.testing.assert_close(rewards_of(folder, prompt)[0], logits)
    assert as_classifier(folder, tmp_path / "other") == folder  # a classifier already


@pytest.mark.long
@pytest.mark.timeout(900)
def test_vllm_gives_the_rewards_of_transformers(tmp_path: Path) -> None:
    from teachers.scorers.vllm import VllmScorer

    source = tiny_causal(tmp_path / "source", "llama")
    plant_head(source, "regression_layer.weight", 19)
    folder = as_classifier(source, tmp_path / "built")
    prompts = [[1, 7, 300, 12, 55], [4, 9]]
    with VllmScorer(folder, scorer("vllm", dtype="fp32"), max_tokens=64) as engine:
        rewards = dict(engine.stream(prompts))
    for row, prompt in enumerate(prompts):
        np.testing.assert_allclose(rewards[row], rewards_of(folder, prompt)[0], atol=1e-3)


def test_a_head_of_unknown_name_is_refused_with_what_may_be_it(tmp_path: Path) -> None:
    source = tiny_causal(tmp_path, "llama")
    plant_head(source, "value.weight", 2)
    with pytest.raises(ValueError, match=r"no reward head .* may be one: \{'value.weight': \[2, 64\]\}"):
        as_classifier(source, tmp_path / "built")
