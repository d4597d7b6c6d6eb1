"""Steps, ranks and micro-batches: everything exactly once, both orders together, targets turned with the rows."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.prompts import Rendered
from core.records import ORDERS, TEST, Conversation
from students.training.data import (
    Example,
    collate,
    make_examples,
    split,
    teacher_weight,
    vote_weight,
)
from students.training.steps import micro_batches, plan_epoch
from tests.composing import configured

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(lengths=LENGTHS, batch=st.integers(1, 9), pool=st.integers(1, 4), epoch=st.integers(0, 3))
def test_an_epoch_meets_every_example_once(lengths: list[int], batch: int, pool: int, epoch: int) -> None:
    steps = plan_epoch(lengths, batch, pool, 0, epoch)
    assert sorted(i for step in steps for i in step) == list(range(len(lengths)))
    assert len(steps) == -(-len(lengths) // batch) and all(len(step) <= batch for step in steps)
    assert steps == plan_epoch(lengths, batch, pool, 0, epoch)


@given(lengths=LENGTHS, world=st.integers(1, 4), budget=st.integers(10, 200))
def test_ranks_share_a_step_without_overlap(lengths: list[int], world: int, budget: int) -> None:
    ranks = micro_batches(range(len(lengths)), lengths, world, budget)
    rows = [row for rank in ranks for piece in rank for row in piece]
    assert Counter(rows) == Counter((i, order) for i in range(len(lengths)) for order in (0, 1))
    assert len({len(rank) for rank in ranks}) == 1  # as many micro-batches everywhere: each is a collective
    for rank in ranks:
        owned = {i for piece in rank for i, _ in piece}
        assert all((i, order) in {row for piece in rank for row in piece} for i in owned for order in (0, 1))
        for piece in rank:
            assert len(piece) * max((lengths[i] for i, _ in piece), default=0) <= max(budget, 2 * 50)
            assert [order for _, order in piece] == [0, 1] * (len(piece) // 2)  # both orders side by side


def test_batches_pad_right_and_turn_targets_with_the_order() -> None:
    example = Example("x", ([1, 2, 3], [4, 5]), (0.7, 0.2, 0.1), (3.0, 2.0, 1.0))
    unvoted = Example("y", ([6], [7]), None, (0.0, 1.0, 2.0), vote_weight=0.0, teacher_weight=0.5)
    batch = collate([(0, 0), (0, 1), (1, 0)], [example, unvoted], torch.device("cpu"))
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 0], [6, 0, 0]] and batch.positions is None
    assert batch.input_ids.flatten()[batch.ends].tolist() == [3, 5, 6]
    torch.testing.assert_close(batch.votes[:2], torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]))
    assert batch.teacher[1].tolist() == [2.0, 3.0, 1.0]
    assert batch.vote_weights.tolist() == [1, 1, 0] and batch.teacher_weights.tolist() == [1, 1, 0.5]
    free = collate([(0, 0), (0, 1), (1, 0)], [example, unvoted], torch.device("cpu"), padding_free=True)
    assert free.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]] and free.positions is not None
    assert free.positions.tolist() == [[0, 1, 2, 0, 1, 0]] and free.ends.tolist() == [2, 4, 5]
    empty = collate([], [example], torch.device("cpu"))
    assert empty.vote_weights.tolist() == [0, 0] and empty.teacher_weights.tolist() == [0, 0]


def test_what_a_conversation_counts() -> None:
    conversation = Conversation("x", ["q"], ["a"], ["b"], votes=[2.0, 1.0, 0.0], source="panda")
    plain = configured().loss.rows
    assert vote_weight(conversation, plain) == 1 and vote_weight(replace(conversation, votes=None), plain) == 0
    assert vote_weight(conversation, replace(plain, votes="count", sources={"panda": 0.5})) == 1.5
    assert teacher_weight(conversation, [1.0, 1.0, 1.0], plain) == 1  # confidence 0: all count alike
    confident = replace(plain, confidence=1.0)
    assert teacher_weight(conversation, [1.0, 1.0, 1.0], confident) == pytest.approx(0)
    assert teacher_weight(conversation, [90.0, 1.0, 1.0], confident) == pytest.approx(1)


def conversations(count: int) -> list[Conversation]:
    return [
        Conversation(str(i), ["q"], ["a"], ["b"], votes=[2.0, 1.0, 1.0], group=f"g{i // 3}", fold=i // 3 % 5)
        for i in range(count)
    ]


def test_the_held_out_fold_is_in_no_part_and_groups_stay_whole() -> None:
    rows = conversations(150)
    training, validation = split(rows, 2, 0.2)
    assert {c.fold for c in (*training, *validation)} == {0, 1, 3, 4} and len(training) + len(validation) == 120
    assert not {c.group for c in training} & {c.group for c in validation}
    assert 15 <= len(validation) <= 33
    tested = split([replace(c, fold=TEST) if c.fold == 1 else c for c in rows], 2, 0.2)
    assert {c.fold for part in tested for c in part} == {0, 3, 4}
    with pytest.raises(ValueError, match=r"fold=9: no conversation is in that fold; folds here: \[0, 1, 2, 3, 4\]"):
        split(rows, 9, 0.2)
    with pytest.raises(ValueError, match="has no votes"):
        split(rows, 2, 0.0)


def test_where_both_orders_look_the_same_the_targets_cannot_tell_a_from_b(caplog: pytest.LogCaptureFixture) -> None:
    """Responses that are equal, or were once their middle was cut; trained as they were, one input won and lost."""
    rows = [replace(c, votes=[3.0, 0.0, 1.0]) for c in conversations(2)]
    rendered = [Rendered("0", order, [5], True) for order in ORDERS]
    rendered += [Rendered("1", order, [5, k], True) for k, order in enumerate(ORDERS)]
    targets = {c.id: [4.0, -4.0, 0.0] for c in rows}
    with caplog.at_level("INFO"):
        same, told_apart = make_examples(rows, rendered, targets, configured().loss.rows)
    assert "1 of 2 conversations look the same in both orders" in caplog.text
    assert same.votes == (0.375, 0.375, 0.25) and told_apart.votes == (0.75, 0.0, 0.25)
    teacher, other = torch.tensor([same.teacher, told_apart.teacher]).softmax(-1)
    assert teacher[0] == teacher[1] and teacher[2] == pytest.approx(other[2]) and told_apart.teacher == (4, -4, 0)


def test_join_is_by_id_and_gaps_are_named() -> None:
    rows = conversations(2)
    rendered = [
        Rendered(c.id, order, [int(c.id), k], False) for c in reversed(rows) for k, order in enumerate(("ab", "ba"))
    ]
    examples = make_examples(rows, rendered, {"1": [1, 2, 3], "0": [4, 5, 6]}, configured().loss.rows)
    assert [e.ids for e in examples] == [([0, 0], [0, 1]), ([1, 0], [1, 1])]
    assert examples[0].votes == (0.5, 0.25, 0.25) and examples[0].teacher == (4.0, 5.0, 6.0)
    with pytest.raises(ValueError, match=r"lack 1 of 2 conversations, such as \['1'\]"):
        make_examples(rows, rendered, {"0": [4, 5, 6]}, configured().loss.rows)
