"""What other frameworks got silently wrong in the loss, planted here: the step by definition must tell each apart.

A plant is the bug itself in the place of our function. Its test fails where the comparison lets the bug pass.

| plant                  | the bug, and who reported it                                                              |
|------------------------|-------------------------------------------------------------------------------------------|
| mean_of_means          | each micro-batch's mean, averaged: TRL #4719 #5653 #6006, ms-swift #10165                  |
| sum_of_means           | each micro-batch's mean, summed, 4.0 times the gradient: Soup #720                         |
| counted_again          | a divisor that counts all rows again in each micro-batch: TRL #6452 #6478                  |
| divided_twice          | EasyDistill #34                                                                           |
| absent_targets_counted | rows without a target in the divisor                                                      |
| teacher_misaligned     | each micro-batch reads the step's first teacher rows: EasyDistill 1.0, by reading          |
| teacher_not_swapped    | order ba beside the teacher's logits of order ab                                          |
| activated_teacher      | probabilities in the place of logits: vLLM #11881                                         |
| softened_twice         | a temperature in the stored logits and in the loss: the converse of verl #5592            |
| teacher_not_softened   | a teacher whose logits ignore the temperature: verl #5592                                 |
| square_missing         | gradients that shrink with T^2: Hinton et al. 2015, 2.1                                   |
| other_weights          | half and half on a second path, whatever is configured: TRL #5731                         |
| stock_loss             | the distillation term is never used: axolotl #3206 #3207 #3661                            |
| pooled_at_first_pad    | first pad - 1, where the text holds that id: transformers #35352 #35911, BioGPT #46782     |
| pooled_in_last_column  | pads on the other side than thought: transformers #24265                                  |
| masked_by_id           | tokens masked because pad is eos: TRL #6357                                               |
| neighbours_seen        | rows side by side without pads that attend to each other                                  |
| pads_that_see_nothing  | NaN from rows of a mask that are empty, Gemma-2 under sdpa: transformers #32390           |
| softcap_left_out       | Gemma-2 under sdpa, which caps no attention score: vLLM #7464                             |
| in_probabilities       | NaN where a probability underflows: TRL #5594                                             |
| cut_to_fit             | logits over another vocabulary cut to the student's width: TRL #2215 #6252                |

Ranks and ZeRO: test_known_bugs_of_engines.py; LoRA and resuming: ..._of_adapters.py; serving: ..._of_serving.py.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.prompts import Rendered
from core.records import ORDERS, Conversation
from students.training import data as dataset
from students.training import loop, losses
from students.training.collectives import process_group
from students.training.data import Batch, make_examples
from students.training.losses import SWAPPED, Objective
from students.training.model import JudgeModel
from tests.composing import configured
from tests.students.training.single_steps import (
    ONE_BATCH,
    ONE_EACH,
    TEMPERATURE,
    Plant,
    Step,
    assert_same_gradients,
    assert_same_step,
    by_definition,
    counted,
    everything,
    make_conversations,
    own_pieces,
    rescale,
    step_config,
    take_step,
    with_small_cap,
)

pytestmark = pytest.mark.timeout(300)
EIGHT = make_conversations(8)
FREE = "engine.padding_free=true"
PLANTS: dict[str, tuple[Plant, str]] = {}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with process_group():
        yield


def planted(way: str) -> Callable[[Plant], Plant]:
    """A bug that shows in a step of tiny Llama's taken this `way`."""

    def register(plant: Plant) -> Plant:
        PLANTS[plant.__name__] = plant, way
        return plant

    return register


@planted(ONE_EACH)
def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    rescale(patch, lambda t, rows: counted(t, everything(t)) / counted(t, rows) / len(own_pieces(t)))


@planted(ONE_EACH)
def sum_of_means(patch: pytest.MonkeyPatch) -> None:
    rescale(patch, lambda t, rows: counted(t, everything(t)) / counted(t, rows))


@planted(ONE_EACH)
def counted_again(patch: pytest.MonkeyPatch) -> None:
    rescale(patch, lambda t, _: 1 / len(own_pieces(t)))


@planted(ONE_BATCH)
def divided_twice(patch: pytest.MonkeyPatch) -> None:
    rescale(patch, lambda t, _: 1 / counted(t, everything(t)))


@planted(ONE_BATCH)
def absent_targets_counted(patch: pytest.MonkeyPatch) -> None:
    right = Objective.normalisers
    patch.setattr(Objective, "normalisers", lambda self, _, taught: right(self, 2 * len(EIGHT), taught))


def batches(patch: pytest.MonkeyPatch, change: Callable[[Batch], dict[str, Any]]) -> None:
    collate = loop.collate

    def changed(*rows: Any, **options: Any) -> Batch:
        batch = collate(*rows, **options)
        return replace(batch, **change(batch))

    patch.setattr(loop, "collate", changed)


@planted(ONE_EACH)
def teacher_misaligned(patch: pytest.MonkeyPatch) -> None:
    first = dataset.collate([(i, order) for i in range(len(EIGHT)) for order in (0, 1)], EIGHT, torch.device("cpu"))
    batches(patch, lambda batch: {"teacher": first.teacher[: len(batch.teacher)]})


@planted(ONE_BATCH)
def teacher_not_swapped(patch: pytest.MonkeyPatch) -> None:
    def turned_back(batch: Batch) -> dict[str, Any]:
        teacher = batch.teacher.clone()
        teacher[1::2] = teacher[1::2][:, SWAPPED]  # both orders of a conversation lie side by side
        return {"teacher": teacher}

    batches(patch, turned_back)


@planted(ONE_BATCH)
def activated_teacher(patch: pytest.MonkeyPatch) -> None:
    batches(patch, lambda batch: {"teacher": batch.teacher.softmax(-1)})


@planted(ONE_BATCH)
def softened_twice(patch: pytest.MonkeyPatch) -> None:
    batches(patch, lambda batch: {"teacher": batch.teacher / TEMPERATURE})


@planted(ONE_BATCH)
def teacher_not_softened(patch: pytest.MonkeyPatch) -> None:
    batches(patch, lambda batch: {"teacher": batch.teacher * TEMPERATURE})


@planted(ONE_BATCH)
def square_missing(patch: pytest.MonkeyPatch) -> None:
    right = losses.divergence_sum
    patch.setattr(losses, "divergence_sum", lambda *arguments: right(*arguments) / TEMPERATURE**2)


def weigh(patch: pytest.MonkeyPatch, *weights: float) -> None:
    patch.setattr(Objective, "weights", torch.tensor(weights, dtype=torch.float64))


@planted(ONE_BATCH)
def other_weights(patch: pytest.MonkeyPatch) -> None:
    weigh(patch, 0.5, 0.5)


@planted(ONE_BATCH)
def stock_loss(patch: pytest.MonkeyPatch) -> None:
    weigh(patch, 1.0, 0.0)


@planted(ONE_BATCH)
def pooled_at_first_pad(patch: pytest.MonkeyPatch) -> None:
    def before(batch: Batch) -> dict[str, Any]:
        rows, width = batch.input_ids.shape
        first = batch.input_ids.eq(0).int().argmax(-1) - 1
        return {"ends": torch.arange(rows) * width + first % width}

    batches(patch, before)


@planted(ONE_BATCH)
def pooled_in_last_column(patch: pytest.MonkeyPatch) -> None:
    batches(patch, lambda b: {"ends": torch.arange(1, len(b.input_ids) + 1) * b.input_ids.shape[1] - 1})


@planted(FREE)
def neighbours_seen(patch: pytest.MonkeyPatch) -> None:
    batches(patch, lambda batch: {"positions": torch.arange(batch.input_ids.shape[1])[None]})


def mask(patch: pytest.MonkeyPatch, masked: Callable[[torch.Tensor], Any]) -> None:
    def forward(self: JudgeModel, input_ids: torch.Tensor, positions: torch.Tensor | None, ends: torch.Tensor) -> Any:
        hidden = self.classifier.model(input_ids=input_ids, attention_mask=masked(input_ids)).last_hidden_state
        return self.classifier.score(hidden.flatten(0, 1)[ends])

    patch.setattr(JudgeModel, "forward", forward)


@planted(ONE_BATCH)
def masked_by_id(patch: pytest.MonkeyPatch) -> None:
    mask(patch, lambda ids: ids.ne(0))


def pads_that_see_nothing(patch: pytest.MonkeyPatch) -> None:
    def empty_for_pads(ids: torch.Tensor) -> Any:
        text = ids.ne(0).flip(-1).cummax(-1).values.flip(-1)
        seen = text[:, None, :, None] & text[:, None, None, :] & torch.ones(2 * ids.shape[1:], dtype=torch.bool).tril()
        added = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        return {"full_attention": added, "sliding_attention": added}

    mask(patch, empty_for_pads)


def softcap_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("students.training.model.choose_attention", lambda *_: "sdpa")


@pytest.fixture(scope="module")
def capped(tiny_gemma2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_small_cap(tiny_gemma2, tmp_path_factory.mktemp("capped") / "gemma2")


@pytest.fixture(scope="module")
def expected(tiny_llama: Path, tiny_qwen2: Path, capped: Path) -> dict[Path, Step]:
    return {base: by_definition(step_config(base), EIGHT) for base in (tiny_llama, tiny_qwen2, capped)}


@pytest.mark.parametrize("way", [ONE_BATCH, ONE_EACH, FREE, "engine.gradient_checkpointing=true"])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "capped"])
def test_a_step_is_the_one_by_definition(
    family: str, way: str, expected: dict[Path, Step], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = request.getfixturevalue(family)
    assert_same_step(take_step(step_config(base, way), EIGHT, tmp_path), expected[base])


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_seen(
    name: str, expected: dict[Path, Step], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, way = PLANTS[name]
    plant(monkeypatch)
    step = take_step(step_config(tiny_llama, way), EIGHT, tmp_path)
    with pytest.raises(AssertionError):
        assert_same_gradients(step, expected[tiny_llama])


@pytest.mark.parametrize("way", [ONE_BATCH, FREE])
def test_a_softcap_left_out_is_seen(
    way: str, expected: dict[Path, Step], capped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    softcap_left_out(monkeypatch)
    step = take_step(step_config(capped, way), EIGHT, tmp_path)
    with pytest.raises(AssertionError):
        assert_same_gradients(step, expected[capped])


def test_nan_through_padding_stops_the_training(capped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pads_that_see_nothing(monkeypatch)
    with pytest.raises(ValueError, match="loss is nan at step 1"):
        take_step(step_config(capped, ONE_BATCH), EIGHT, tmp_path)


def in_probabilities(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(losses.DIVERGENCES, "kl", lambda q, p: (p.exp() * (p.exp() / q.exp()).log()).sum(-1))


def assert_finite_where_probabilities_underflow() -> None:
    far = torch.tensor([[300.0, 0.0, -300.0]])
    for name in losses.DIVERGENCES:
        logits = far.clone().requires_grad_()
        loss = losses.divergence_sum(losses.DIVERGENCES[name], logits, -far, torch.ones(1), 1.0)
        loss.backward()
        assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all(), name


def test_no_divergence_is_nan_where_probabilities_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_finite_where_probabilities_underflow()
    in_probabilities(monkeypatch)
    with pytest.raises(AssertionError, match="kl"):
        assert_finite_where_probabilities_underflow()


def cut_to_fit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dataset, "_triple", lambda values: tuple(values)[:3])


@pytest.mark.parametrize("plant", [None, cut_to_fit])
def test_logits_over_other_labels_are_refused(plant: Plant | None, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation("x", ["q"], ["a"], ["b"], votes=[1.0, 0.0, 0.0])
    rendered = [Rendered("x", order, [1], False) for order in ORDERS]
    if plant:
        plant(monkeypatch)
    with pytest.raises(ValueError) if plant is None else nullcontext():
        make_examples([conversation], rendered, {"x": [1.0, 2.0, 3.0, 4.0]}, configured().loss.rows)
