from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from core.prompts import Rendered, Renderer
from core.records import ORDERS, Conversation, Order
from students.export.calibration_rows import POOL, calibration_prompts, canary_prompts
from tests.composing import configured

COUNT = 16
# Responses of 1 to 64 words: no two prompts are of one length.
CONVERSATIONS = [Conversation(f"c{n}", ["Which?"], ["yes " * n], ["no " * n]) for n in range(1, 4 * COUNT + 1)]


class CountingRenderer(Renderer):
    """Counts the conversations that it renders."""

    rendered = 0

    def render(self, conversations: Iterable[Conversation], orders: Sequence[Order] = ORDERS) -> Iterator[Rendered]:
        given = list(conversations)
        self.rendered += len(given)
        return super().render(given, orders)


@pytest.fixture
def renderer(tiny_tokenizer_folder: Path) -> CountingRenderer:
    return CountingRenderer(configured("prompt.max_tokens=512").prompt, tiny_tokenizer_folder)


def test_alternate_orders_and_come_from_every_stratum_of_length(renderer: CountingRenderer) -> None:
    chosen = calibration_prompts(CONVERSATIONS, renderer, COUNT, seed=0)
    prompts = {tuple(prompt.ids): prompt for prompt in renderer.render(CONVERSATIONS)}
    shown = [prompts[tuple(ids)] for ids in chosen]  # a prompt that was cut, padded or joined would not be there
    assert [prompt.order for prompt in shown] == ["ab", "ba"] * (COUNT // 2)
    assert [(int(prompt.id[1:]) - 1) // 4 for prompt in shown] == [*range(COUNT)]


def test_end_at_the_last_token_of_the_verdict(renderer: CountingRenderer, tiny_tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer_folder / "tokenizer.json"))
    verdict = tokenizer.encode(renderer.config.template.verdict, add_special_tokens=False).ids
    chosen = calibration_prompts(CONVERSATIONS, renderer, COUNT, seed=0)
    assert all(ids[-len(verdict) :] == verdict for ids in chosen)


def test_depend_on_the_seed_and_not_on_the_order_of_conversations(renderer: CountingRenderer) -> None:
    shuffled = Random(0).sample(CONVERSATIONS, len(CONVERSATIONS))
    chosen = calibration_prompts(CONVERSATIONS, renderer, COUNT, seed=0)
    assert calibration_prompts(shuffled, renderer, COUNT, seed=0) == chosen
    assert calibration_prompts(CONVERSATIONS, renderer, COUNT, seed=1) != chosen


def test_few_of_many_conversations_are_rendered(renderer: CountingRenderer) -> None:
    calibration_prompts(CONVERSATIONS, renderer, 3, seed=0)
    assert renderer.rendered == 3 * POOL


def test_fewer_conversations_than_asked_for(renderer: CountingRenderer) -> None:
    assert len(calibration_prompts(CONVERSATIONS[:5], renderer, 5, seed=0)) == 5
    with pytest.raises(ValueError, match=r"5 training conversations are fewer than export\.calibration_rows=6: lower"):
        calibration_prompts(CONVERSATIONS[:5], renderer, 6, seed=0)


def test_canaries_are_short_enough_and_still_of_all_lengths(renderer: CountingRenderer) -> None:
    free = canary_prompts(CONVERSATIONS, renderer, COUNT, 10**9, seed=0)
    assert [prompt.ids for _, prompt in free] == calibration_prompts(CONVERSATIONS, renderer, COUNT, seed=0)
    assert all(conversation.id == prompt.id for conversation, prompt in free)
    whole = sum(len(prompt.ids) for _, prompt in free)
    short = canary_prompts(CONVERSATIONS, renderer, COUNT, 2 * whole // 3, seed=0)
    lengths = [len(prompt.ids) for _, prompt in short]
    assert sum(lengths) < 0.75 * whole and len(set(lengths)) == len(lengths) == COUNT
    least = canary_prompts(CONVERSATIONS, renderer, COUNT, 1, seed=0)
    assert {prompt.id for _, prompt in least} == {f"c{n}" for n in range(1, COUNT + 1)}
    assert len(canary_prompts(CONVERSATIONS[:5], renderer, COUNT, 10**9, seed=0)) == 5
