"""A pointwise judge's steps: their gradients by definition, shared responses computed once, runs that survive kills."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.data.table import load_conversations
from core.errors import UserError
from core.json_files import read_json
from core.labels import NO_TIE, WITHOUT_TIES, Labels
from core.pointwise import JUDGE, choice_of
from core.records import LABELS
from core.scoring import logits_by_order, score_conversations
from distill import prepare, student
from distill.training_run import run_folder
from eval.metrics import log_loss_rows, predict
from students.trained import open_trained
from students.training.collectives import process_group
from students.training.data import Example, collate, prompt_numbers, split
from students.training.inputs import check_prompt
from students.training.pairing import PACE
from students.training.steps import micro_batches, plan_epoch
from teachers.scorers.opening import open_scorer
from tests.composing import configured, scorer
from tests.grids import grid
from tests.students.training.single_steps import (
    ONE_BATCH,
    ONE_EACH,
    Case,
    assert_same_step,
    by_definition,
    make_conversations,
    make_judge,
    step_config,
    take_step,
    take_steps_on,
    with_small_cap,
)

pytestmark = pytest.mark.timeout(300)
POINTWISE = ("model.kind=pointwise", "model.head=new")
FREE = "engine.padding_free=true"
CPU = torch.device("cpu")


def with_shared_responses(count: int = 6) -> list[Example]:
    """Conversations of which every third has the first response of the one before, and one has two equal ones."""
    found = make_conversations(count)
    for i in range(2, count, 3):
        found[i] = replace(found[i], ids=(found[i].ids[0], found[i - 1].ids[0]))
    found[0] = replace(found[0], ids=(found[0].ids[0], found[0].ids[0]))
    return found


@pytest.fixture
def group() -> Iterator[None]:
    with process_group():
        yield


@pytest.mark.parametrize(
    ("family", "stage", "how"),
    grid(
        [
            *(
                (family, "zero0", how)
                for family in ("tiny_llama", "tiny_qwen2", "tiny_gemma2")
                for how in (ONE_BATCH, ONE_EACH, FREE)
            ),
            *(("tiny_llama", f"zero{stage}", ONE_EACH) for stage in (1, 2, 3)),
        ],
        short=[("tiny_llama", "zero0", ONE_BATCH), ("tiny_llama", "zero3", ONE_EACH)],
    ),
)
def test_a_step_is_the_step_by_definition(
    family: str, stage: str, how: str, tmp_path: Path, group: None, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(family)
    if family == "tiny_gemma2":
        base = with_small_cap(base, tmp_path / "base")
    config = step_config(base, *POINTWISE, f"engine={stage}", how)
    conversations = with_shared_responses()
    expected = by_definition(config, conversations)
    found = take_step(config, conversations, tmp_path / "run", save=True)
    assert expected.gradients.keys() >= {"choice.log_scale", "choice.log_tie", "choice.height"}
    assert_same_step(found, expected)
    choice = choice_of(read_json(tmp_path / "run" / "adapter" / JUDGE, ""))
    assert choice is not None
    assert math.log(choice.scale) == pytest.approx(found.values["choice.log_scale"].item(), abs=1e-6)
    assert choice.log_tie == pytest.approx(found.values["choice.log_tie"].item())
    assert choice.height == pytest.approx(PACE * found.values["choice.height"].item())


@pytest.mark.long
def test_two_ranks_take_the_step_of_one(tiny_llama: Path, tiny_gemma2: Path, tmp_path: Path) -> None:
    gemma = with_small_cap(tiny_gemma2, tmp_path / "base")
    cases = {
        f"{name}-{stage}": Case(step_config(base, *POINTWISE, f"engine=zero{stage}", ONE_EACH), with_shared_responses())
        for name, base in (("llama", tiny_llama), ("gemma", gemma))
        for stage in range(4)
    }
    for name, step in take_steps_on(2, cases, tmp_path):
        assert_same_step(step, by_definition(cases[name].config, cases[name].conversations))


def test_data_without_ties_leave_out_the_tie_constant(tiny_llama: Path) -> None:
    from students.training.model import build_judge

    config = step_config(tiny_llama, *POINTWISE)
    judge = build_judge(tiny_llama, config.model, config.engine, 0, labels=("a", "b"))
    assert [n for n, _ in judge.named_parameters() if n.startswith("choice")] == ["choice.log_scale"]


def test_a_response_that_conversations_share_is_computed_once_a_step() -> None:
    conversations = with_shared_responses()
    lengths, numbers = [c.length for c in conversations], prompt_numbers(conversations)
    distinct = {tuple(ids) for c in conversations for ids in c.ids}
    for world in (1, 2):
        dealt = micro_batches(range(len(conversations)), lengths, world, 400, numbers)
        computed = [collate(rows, conversations, CPU).input_ids.shape[0] for rank in dealt for rows in rank if rows]
        assert sum(computed) == len(distinct)
        assert sorted(row for rank in dealt for rows in rank for row in rows) == [
            (i, o) for i in range(len(lengths)) for o in (0, 1)
        ]
        for rank in dealt:
            for rows in rank:
                batch = collate(rows, conversations, CPU)
                for (i, order), end in zip(rows, batch.ends, strict=False):
                    row, last = divmod(int(end), batch.input_ids.shape[1])
                    assert batch.input_ids[row, : last + 1].tolist() == conversations[i].ids[order]


@given(prompts=st.lists(st.integers(0, 5), min_size=1, max_size=60), batch=st.integers(1, 9), epoch=st.integers(0, 2))
def test_a_step_holds_what_shares_a_response(prompts: list[int], batch: int, epoch: int) -> None:
    """Conversations of one prompt share a response here: they stay together in pieces of a quarter of a step."""
    lengths, numbers = [10 + i % 7 for i in range(len(prompts))], [(p, 100 + i) for i, p in enumerate(prompts)]
    steps = plan_epoch(lengths, batch, 3, 0, epoch, numbers)
    assert sorted(i for step in steps for i in step) == [*range(len(prompts))]
    assert [len(step) for step in steps].count(batch) >= len(prompts) // batch
    for prompt, count in Counter(prompts).items():
        parted = sum(any(prompts[i] == prompt for i in step) for step in steps)
        assert parted <= 2 * math.ceil(count / max(1, batch // 4))  # a border may part each piece
    alone = plan_epoch(lengths, batch, 3, 0, epoch, [(-i - 1, i) for i in range(len(prompts))])
    assert alone == plan_epoch(lengths, batch, 3, 0, epoch)


@pytest.mark.parametrize("world", [1, 2, 5, 8])
def test_no_rank_waits_while_others_have_all_of_a_prompt(world: int) -> None:
    """All pairs of eight responses to each of two prompts, as most steps are: each rank has its part."""
    pairs = [(8 * prompt + i, 8 * prompt + j) for prompt in range(2) for i in range(8) for j in range(i)]
    dealt = micro_batches(range(56), [10] * 56, world, 1000, pairs)
    counts = [sum(map(len, rank)) // 2 for rank in dealt]
    assert sum(counts) == 56 and max(counts) == math.ceil(56 / world)


@given(families=st.lists(st.integers(1, 12), min_size=1, max_size=12), world=st.integers(1, 5))
def test_no_rank_gets_twice_its_part(families: list[int], world: int) -> None:
    """Families of at most a part stay together for that, as sharing a response saves more."""
    numbers = [(f, 100 + 12 * f + i) for f, size in enumerate(families) for i in range(size)]
    dealt = micro_batches(range(len(numbers)), [10] * len(numbers), world, 10_000, numbers)
    owned = [[numbers[i][0] for rows in rank for i, order in rows if order == 0] for rank in dealt]
    part = math.ceil(len(numbers) / world)
    assert sum(map(len, owned)) == len(numbers) and max(map(len, owned)) < 2 * part
    for family, size in enumerate(families):
        assert size > part or sum(family in of for of in owned) == 1


def test_no_step_is_of_one_prompt_where_there_are_others_and_epochs_differ() -> None:
    """As of 165 pairs of answers to each of a few prompts, all of the same length."""
    prompts = [i // 165 for i in range(13 * 165)]
    lengths, numbers = [224] * len(prompts), [(p, 10_000 + i) for i, p in enumerate(prompts)]
    first, second = (plan_epoch(lengths, 32, 16, 0, epoch, numbers) for epoch in (0, 1))
    assert min(len({prompts[i] for i in step}) for step in first if len(step) == 32) > 1
    assert np.mean([len({prompts[i] for i in step}) for step in first]) > 3
    assert not {frozenset(step) for step in first} & {frozenset(step) for step in second}


def test_few_steps_are_of_one_prompt_where_its_pairs_share_their_longest_response() -> None:
    """As of 100 pairs of 15 answers to each of 14 prompts: most pairs of a prompt are nearly as long."""
    random = np.random.default_rng(0)
    prompts, lengths, numbers = list[int](), list[int](), list[tuple[int, int]]()
    for prompt in range(14):
        answers = random.lognormal(4.5, 0.8, 15).astype(int)
        pairs = [(i, j) for i in range(15) for j in range(i)]
        for i, j in random.permutation(pairs)[:100].tolist():
            prompts.append(prompt)
            lengths.append(int(max(answers[i], answers[j])))
            numbers.append((15 * prompt + i, 15 * prompt + j))
    steps = [step for epoch in range(3) for step in plan_epoch(lengths, 64, 16, 0, epoch, numbers)]
    of_one = np.mean([len({prompts[i] for i in step}) == 1 for step in steps if len(step) == 64])
    assert of_one < 0.03, "about a seventh would be, sorted by length alone"
    narrow = np.mean([np.ptp([lengths[i] for i in step]) for step in steps])
    assert narrow < 0.6 * np.ptp(lengths), "steps are still of about one length"


@pytest.mark.parametrize("chosen", [range(6), [0], [1]])  # the first has two equal responses
def test_longer_and_shorter_prompts_are_padded_apart(chosen: Sequence[int]) -> None:
    conversations = with_shared_responses()
    rows = [(i, order) for i in chosen for order in (0, 1)]
    batch, whole = (collate(rows, conversations, CPU, in_two=in_two) for in_two in (True, False))
    assert isinstance(batch.input_ids, tuple) and isinstance(whole.input_ids, torch.Tensor)
    flat = torch.cat([block.flatten() for block in batch.input_ids])
    for (i, order), end in zip(rows, batch.ends.tolist(), strict=True):
        ids = conversations[i].ids[order]
        assert flat[end - len(ids) + 1 : end + 1].tolist() == ids
    first = batch.input_ids[0].numel()
    assert {bool(end < first) for end in batch.ends} == {True, False}  # both have a part in the gradient
    assert len(chosen) == 1 or len(flat) < whole.input_ids.numel()


def test_a_family_over_the_budget_is_cut() -> None:
    conversations = [replace(c, ids=(c.ids[0], [7] * 80)) for c in make_conversations(6)]
    lengths = [c.length for c in conversations]
    (pieces,) = micro_batches(range(6), lengths, 1, 200, prompt_numbers(conversations))
    assert all(collate(rows, conversations, CPU).input_ids.numel() <= 200 for rows in pieces)
    assert sum(map(len, pieces)) == 12


def test_what_follows_a_family_that_is_cut_keeps_the_budget() -> None:
    """Its shortest conversations come after longer ones of other families, which set the width of the pads."""
    shared, others = [1] * 10, ([2] * 10, [3] * 10, [4] * 2)
    ids = [(shared, other) for other in others[:2]] + [([1] * 2, others[2]), (others[2], shared), ([5] * 8, [6] * 8)]
    conversations = [replace(c, ids=each) for c, each in zip(make_conversations(5), ids, strict=True)]
    lengths = [c.length for c in conversations]
    for budget in range(20, 60):
        (pieces,) = micro_batches(range(5), lengths, 1, budget, prompt_numbers(conversations))
        assert all(collate(rows, conversations, CPU).input_ids.numel() <= budget for rows in pieces), budget


def test_a_better_response_has_the_larger_reward_whatever_was_learnt(tiny_llama: Path) -> None:
    judge = make_judge(step_config(tiny_llama, *POINTWISE))
    assert judge.choice is not None
    with torch.no_grad():
        judge.choice.log_scale.fill_(-5.0)
        logits = judge.choice(torch.tensor([[2.0], [1.0], [0.5], [3.0]]))
    assert logits[0, 0] > logits[0, 1] and logits[2, 0] < logits[2, 1]
    assert torch.equal(logits[1::2], logits[::2][:, [1, 0, 2]])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    prepare.main(configured("+exp=smoke", f"paths.root={root}", "data.test_share=0"))
    return root


@pytest.mark.parametrize(
    ("tuning", "labels"),
    grid(
        [(tuning, LABELS) for tuning in ("lora", "dora", "full")] + [("lora", WITHOUT_TIES)], short=[("full", LABELS)]
    ),
)
def test_what_was_trained_is_what_is_served(
    tuning: str, labels: Labels, root: Path, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("students.training.inputs.labels_in", lambda _: labels)
    how = {"dora": ("model.lora.method=dora",), "full": ("model=full",)}.get(tuning, ())
    fixed = ["+exp=smoke", f"paths.root={root}", "model.layers=null", "loss=votes", "prompt=pointwise"]
    config = configured(*fixed, "model.kind=pointwise", "prompt.max_tokens=128", "optimizer.lr=0.01", *how)
    run = f"{tuning}-{len(labels)}"
    config = replace(config, run=run, model=replace(config.model, base=str(tiny_qwen2)))
    loss = student.main(config)
    judge = open_trained(run_folder(config), root, "")
    assert judge.choice is not None and (judge.choice.log_tie == NO_TIE) == (labels != LABELS)
    _, rows = split(load_conversations(root / "data" / config.data.name), config.fold, config.train.validation_share)
    with open_scorer(judge.merged(root), scorer("transformers"), judge.max_tokens) as opened:
        scores = score_conversations(opened, judge.renderer, rows)
    if labels == LABELS:
        logits, votes = logits_by_order(scores, [c.id for c in rows]), np.array([c.votes for c in rows])
        assert loss == pytest.approx(log_loss_rows(predict(*logits), votes).mean(), abs=1e-5)
    else:
        assert {tie for _, _, tie in scores["logits"].to_list()} == {NO_TIE}


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [((), "pointwise", "add prompt=pointwise"), (("prompt=pointwise",), "pairwise", "add model.kind=pointwise")],
)
def test_a_prompt_of_the_other_kind_is_refused(overrides: tuple[str, ...], kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_prompt(kind, configured("+exp=smoke", *overrides).prompt)
