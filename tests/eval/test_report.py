"""The report is one safe file that says what was measured, whatever people wrote into the texts."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from distill.records import Conversation
from distill.runs import Manifest
from eval.report import LADDER, Axis, headline, table, write_report

EVIL = "<script>alert('x')</script>\" onload=\"x"
FIGURES = {"log_loss": 0.95, "log_loss_ci": [0.9, 1.0], "accuracy": 0.52, "ece": 0.03, "flip_rate": 0.06}
GAIN = {"difference": 0.02, "ci": [0.01, 0.03]}
VOID = {"meta", "wbr", "br"}


class Tags(HTMLParser):
    """Collects tags and attributes, and holds that tags close in the order in which they open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(path: Path, **changes: Any) -> str:
    conversations = [
        Conversation(f"id{i}", [f"prompt {i}", "more"], ["a", "a2"], ["b"], "model", None, votes, group=str(i % 7))
        for i, votes in enumerate([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0]] * 10)
    ]
    steps = list(range(1, 501))
    arguments: dict[str, Any] = {
        "name": "demo",
        "metrics": {judge: FIGURES for judge in LADDER},
        "gain": GAIN,
        "conversations": conversations,
        "probabilities": np.random.default_rng(0).dirichlet([1, 1, 1], size=len(conversations)),
        "bins": 10,
        "draws": 1000,
        "history": pl.DataFrame(
            {
                "step": steps,
                "loss": [1 / s for s in steps],
                "validation_log_loss": [None if s % 100 else 1.0 for s in steps],
            }
        ),
        "lineage": {
            "student": ("students/demo/fold=0/manifest.json", Manifest("student", {}, {}, "c0ffee", command="x"))
        },
    }
    write_report(path / "report.html", **arguments | changes)
    return (path / "report.html").read_text(encoding="utf-8")


def test_hostile_texts_and_names_are_escaped(tmp_path: Path) -> None:
    evil = Conversation(EVIL, [EVIL], [EVIL], [EVIL], EVIL, EVIL, [1.0, 0.0, 0.0], group=EVIL, source=EVIL)
    lineage = {"student": (EVIL, Manifest("student", {}, {}, EVIL, command=EVIL, created=EVIL))}
    page = page_of(
        tmp_path, name=EVIL, conversations=[evil], probabilities=np.array([[0.1, 0.8, 0.1]]), lineage=lineage
    )
    found = Tags(page)
    assert "script" not in found.seen and "onload" not in found.attributes
    assert found.text.count(EVIL) == 14  # 2 names, snippet, id, source, prompt, 2 responses, 2 models, 4 of lineage


def test_page_needs_nothing_beside_it_and_its_tags_close(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    found = Tags(page)
    assert not found.attributes & {"src", "href", "srcset", "onclick"} and "url(" not in page and "@import" not in page
    assert not {"script", "link", "img", "iframe"} & set(found.seen)
    assert "default-src 'none'" in page
    assert headline(FIGURES, GAIN) in found.text
    assert "students/demo/fold=0/manifest.json" in page and "c0ffee" in page
    assert page.count("<details>") == 10
    assert not re.search(r"\b(nan|inf)%?\b", page)


def test_mistakes_are_the_dearest_rows_first(tmp_path: Path) -> None:
    page = page_of(tmp_path, probabilities=np.tile([0.9, 0.05, 0.05], (20, 1)))
    shown = re.findall(r"id (id\d+)", page)
    assert {int(name[2:]) % 2 for name in shown} == {1} and len(shown) == 10, "rows that voted b, against 0.9 for a"


def test_report_does_without_teacher_history_and_comparison(tmp_path: Path) -> None:
    page = page_of(tmp_path, metrics={"student": FIGURES}, gain=None, history=None, lineage={})
    assert "The student&#39;s log loss is 0.9500" in page and "Training of the student" not in page


def test_diverged_training_still_gives_a_report(tmp_path: Path) -> None:
    history = pl.DataFrame(
        {"step": [1, 2, 3], "loss": [1.0, float("nan"), float("inf")], "validation_log_loss": [None] * 3},
        schema_overrides={"validation_log_loss": pl.Float64},
    )
    page = page_of(tmp_path, history=history)
    assert "training loss" in page and "validation log loss" not in page


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (
            {"difference": 0.02, "ci": [0.01, 0.03]},
            "Distillation lowered the student's log loss by 0.0200 (95% interval 0.0100 to 0.0300).",
        ),
        (
            {"difference": -0.02, "ci": [-0.03, -0.01]},
            "Distillation raised the student's log loss by 0.0200 (95% interval 0.0100 to 0.0300).",
        ),
        ({"difference": 0.02, "ci": [-0.01, 0.05]}, "No measurable gain from distillation"),
    ],
)
def test_headline_says_only_what_the_interval_allows(gain: dict[str, Any], words: str) -> None:
    assert headline(FIGURES, gain).startswith(words)


def test_table_follows_the_ladder() -> None:
    output = io.StringIO()
    Console(file=output, width=120).print(table({judge: FIGURES for judge in reversed(LADDER)}))
    places = [re.search(rf"\b{judge} ", output.getvalue()) for judge in LADDER]
    starts = [place.start() for place in places if place]
    assert len(starts) == len(LADDER) and starts == sorted(starts)


@pytest.mark.parametrize("values", [(0, 1), (0.9371, 1.0986), (5, 5), (0, 0), (-3e-5, 2e-5), (1, 57477)])
def test_axis_holds_its_values_and_has_a_few_round_ticks(values: tuple[float, float]) -> None:
    axis = Axis.over(values, 0.05)
    assert all(0 <= axis.at(v) <= 100 for v in values)
    assert 3 <= len(axis.ticks) <= 9
    assert all(float(label.replace(",", "")) == pytest.approx(tick, abs=1e-12) for tick, label in axis.ticks)
