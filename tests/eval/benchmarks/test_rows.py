"""Which benchmark a file is of, which pairs it asks for, and what is wrong with a row in one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.errors import UserError
from core.records import ORDERS, Conversation
from core.scoring import SCORES
from eval.benchmarks.rows import Benchmark, read_benchmark
from tests.composing import configured
from tests.layout_files import FILES

RM_BENCH = [
    {"id": f"chat_{i}", "prompt": f"What is {i}?", "chosen": [f"{i}", f"It is {i}.", f"**{i}**"]}
    | {"rejected": [f"{i + 1}", f"It is {i + 1}.", f"**{i + 1}**"], "domain": ("chat", "safety-refuse")[i % 2]}
    for i in range(4)
]
REWARDBENCH2 = [
    {"id": f"{kind}:{i}", "prompt": f"Name a colour {i}.", "chosen": [f"{c} {i}" for c in right]}
    | {"rejected": [f"horse {i}", f"sea {i}"], "num_correct": len(right), "subset": "Ties"}
    for i in range(2)
    for kind, right in (("ref", ["red"]), ("tied", ["red", "blue", "green"]))
]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "file.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def read(path: Path) -> Benchmark:
    return read_benchmark(path, configured().data)


@pytest.mark.parametrize(
    ("name", "rows", "pairs"),
    [
        ("rewardbench", FILES["rewardbench"](4), 4),
        ("rewardbench2", REWARDBENCH2, 2 * (3 + 10)),
        ("rm_bench", RM_BENCH, 4 * 9),
        ("rm_bench", [{**row, "subset": "alpacaeval"} for row in RM_BENCH], 4 * 9),  # as its total_dataset.json
        ("judgebench", FILES["judgebench"](4), 4),
    ],
)
def test_a_file_says_which_benchmark_it_is_of(
    name: str, rows: list[dict[str, Any]], pairs: int, tmp_path: Path
) -> None:
    found = read(written(tmp_path, rows))
    assert found.name == name and len(found.rows) == len(rows)
    conversations = found.conversations()
    assert len(conversations) == pairs == len({c.id for c in conversations})
    parquet = tmp_path / "file.parquet"
    pl.DataFrame(rows).write_parquet(parquet)
    assert read(parquet).rows == found.rows, "all file types give the same"


def test_the_right_response_stands_first_whichever_side_it_was_on(tmp_path: Path) -> None:
    row = {"pair_id": "x", "source": "mmlu-pro-law", "question": "Two?", "response_A": "2", "response_B": "3"}
    straight = read(written(tmp_path, [{**row, "label": "A>B"}]))
    turned = read(written(tmp_path, [{**row, "response_A": "3", "response_B": "2", "label": "B>A"}]))
    assert straight.conversations() == turned.conversations()
    assert straight.rows[0].responses == [["2"], ["3"]]


def test_margins_are_joined_by_id_and_antisymmetric(tmp_path: Path) -> None:
    benchmark = read(written(tmp_path, REWARDBENCH2))

    def logits(conversation: Conversation, order: str) -> list[float]:
        length = len(conversation.response_a[0]) - len(conversation.response_b[0])
        return [length + (0.25 if order == "ab" else -0.25), 0.0, 9.0]

    asked = [(c, order) for c in reversed(benchmark.conversations()) for order in ORDERS]
    table = {"id": [c.id for c, _ in asked], "order": [o for _, o in asked], "logits": [logits(*of) for of in asked]}
    scores = pl.DataFrame(table, schema={name: SCORES[name] for name in table})
    for row, margin in zip(benchmark.rows, benchmark.margins(scores), strict=True):
        lengths = np.array([len(response[0]) for response in row.responses])
        expected = np.subtract.outer(lengths, lengths)
        off = ~np.eye(len(lengths), dtype=bool)
        assert margin.mean(axis=0)[off] == pytest.approx(expected[off])
        assert np.isnan(margin[0].diagonal()).all() and (margin == -margin.swapaxes(1, 2))[:, off].all()


@pytest.mark.parametrize(
    ("rows", "changes", "told"),
    [
        (FILES["rewardbench"](3), {"rejected": None}, "row 2: rejected is empty: None"),
        (REWARDBENCH2, {"rejected": []}, "row 2: rejected is empty: []"),
        (REWARDBENCH2, {"id": "tie-1"}, "row 2: the id of a row of Ties is neither ref:NUMBER nor tied:NUMBER: tie-1"),
        (REWARDBENCH2, {"num_correct": 2}, "row 2: num_correct is 2, but there are 3 chosen responses"),
        (RM_BENCH, {"rejected": ["one", "two"]}, "row 2: RM-Bench has 3 chosen and 3 rejected, found 3 and 2"),
        (RM_BENCH, {"domain": "law"}, "row 2: domain begins with none of chat, math, code, safety: law"),
        (FILES["judgebench"](3), {"label": "A=B"}, "row 2: label has to be A>B or B>A: A=B"),
        (FILES["judgebench"](3), {"response_B": None}, "row 2: response_B is no text: None"),
    ],
)
def test_a_bad_row_is_told_with_file_and_row(
    rows: list[dict[str, Any]], changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = written(tmp_path, [rows[0], rows[1] | changes, *rows[2:]])
    with pytest.raises(UserError) as error:
        read(path)
    assert f"benchmark={path}: {told}" in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="has the layout lmsys; RewardBench"):
        read(written(tmp_path, FILES["lmsys"](3)))
    one_domain = [{k: v for k, v in row.items() if k != "domain"} | {"subset": "alpacaeval"} for row in RM_BENCH]
    with pytest.raises(
        UserError, match=r"neither domain, as RM-Bench has \(its total_dataset\.json\), nor num_correct"
    ):
        read(written(tmp_path, one_domain))
    with pytest.raises(UserError, match="lacks 'rejected"):
        read(written(tmp_path, [{k: v for k, v in row.items() if k != "rejected"} for row in RM_BENCH]))
