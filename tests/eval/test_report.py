"""The report is one safe file in which every number leads back to the file that it was read from."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from core.records import Conversation
from core.scoring import logits_by_order
from eval.conclusions import Row
from eval.evaluation import Evaluation
from eval.metrics import kl_rows, log_loss_rows, predict
from eval.report.ladder import LADDER
from eval.report.lineage import trace
from eval.report.page import LONGEST, Report, shown_rows, turns, write_report
from eval.report.terminal import bayes_line, checks_line, lines, surface_line, table
from eval.results import read_result
from tests.eval.evaluations import Evaluated, evaluate, history, typed

EVIL = "<script>alert('x')</script>\" onload=\"x"
VOID = {"meta", "wbr", "br"}
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?%?(?![\w-])")
CONSTANT = {"95%"}  # every interval's
SHOWN = {
    "nats": lambda value: f"{value:.4f}",
    "signed": lambda value: f"{value:+.4f}".replace("-0.0000", "+0.0000"),
    "share": lambda value: f"{100 * value:.1f}%",
    "points": lambda value: (
        f"{100 * value:+.1f}".replace("-0.0", "+0.0") if abs(value) < 5e-4 else f"{100 * value:+.1f}"
    ),
    "count": lambda value: f"{int(value):,d}",
    "tokens": lambda value: f"{value:,.0f}",
    "hours": lambda value: f"{value:.2g}" if value < 1 else f"{value:,.1f}",
    "number": lambda value: f"{value:g}",
    "loss": lambda value: f"{value:.2f}",
    "ratio": lambda value: f"{value:.3f}",
    "rating": lambda value: f"{value:,.0f}",
    "p": lambda value: f"{value:#.2g}",
    "text": str,
}


class Page(HTMLParser):
    """A page's tags and attributes; its text by element with a source, and the rest by section.

    Holds that tags close in the order in which they open.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.sourced: list[tuple[str, str, str]] = []
        self.bare = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
            if "data-source" in dict(attrs):
                self.sourced.append((dict(attrs)["data-source"], dict(attrs)["data-format"], ""))

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        around = [attributes for _, attributes in self.open]
        if any("data-source" in attributes for attributes in around):
            source, form, text = self.sourced.pop()
            self.sourced.append((source, form, text + data))
        elif any(a.get("class") == "figures" for a in around) and around[-1].get("class") != "tick":
            self.bare += data + "|"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return evaluate(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def page(evaluation: Evaluated) -> Page:
    return Page(evaluation.page)


def opened(evaluation: Evaluated) -> dict[str, Any]:
    """The files that the page may name: beside it, and below the artefacts' root."""
    files = {"metrics.json": json.loads((evaluation.folder / "metrics.json").read_text())}
    for path in evaluation.root.rglob("*"):
        name = str(path.relative_to(evaluation.root))
        if path.name in ("manifest.json", "fidelity.json"):
            files[name] = json.loads(path.read_text())
        elif path.name == "history.parquet":
            files[name] = pl.read_parquet(path).to_dict(as_series=False)
    return files


def value_at(files: dict[str, Any], source: str) -> Any:
    name, _, pointer = unquote(source).partition("#")
    value = files[name]
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        value = value[int(key) if isinstance(value, list) else key]
    return value


def test_every_number_is_that_of_its_file(evaluation: Evaluated, page: Page) -> None:
    files = opened(evaluation)
    assert len(page.sourced) > 800
    for sources, forms, text in page.sourced:
        values = [value_at(files, source) for source in sources.split(" ")]
        expected = ["–" if v is None else SHOWN[form](v) for v, form in zip(values, forms.split(" "), strict=True)]
        if len(expected) == 1:
            assert text == expected[0], sources
        else:
            for shown in expected:  # in this order
                before, found, text = text.partition(shown)
                assert found and not NUMBER.search(before.removeprefix(": ")), (sources, before, shown)
            assert not NUMBER.search(text), (sources, text)


def test_no_number_of_a_figure_lacks_a_source(page: Page) -> None:
    assert set(NUMBER.findall(page.bare)) <= CONSTANT
    assert "Kendall" in page.bare and "student_w8a8" in page.bare, "the text of sections was looked at"


def test_numbers_outside_of_elements_are_not_shown(page: Page) -> None:
    spoken = [value for name, value in page.attributes if name in ("aria-label", "title")]
    assert spoken and not [text for text in spoken if NUMBER.search(text)]


def test_metrics_hold_what_readers_count_on(evaluation: Evaluated) -> None:
    metrics = opened(evaluation)["metrics.json"]
    assert {"rows", "bayes", "judges", "gain", "leaderboard", "reading", "humans", "differences"} <= set(metrics)
    assert set(LADDER) - set(metrics["judges"]) == {f"student_{f}" for f in ("merged", "w8a16", "w4a16", "gguf")}
    biases = metrics["judges"]["teacher"]["biases"]
    assert {"position", "verbosity", "self_enhancement", "truncation"} <= set(biases)
    assert "self_enhancement" not in metrics["judges"]["student"]["biases"], "nobody said what its family is"
    assert metrics["judges"]["student"]["biases"]["position"]["flagged"]
    assert metrics["judges"]["student_w8a8"]["biases"]["verbosity"]["flagged"]
    assert len(metrics["judges"]["student_w8a8"]["recalibrated"]["reliability_by_label"]["tie"]) > 1


def test_reading_holds_the_dearest_and_the_farthest_of_each_prompt(evaluation: Evaluated) -> None:
    reading = opened(evaluation)["metrics.json"]["reading"]
    frame = pl.read_parquet(evaluation.folder / "predictions.parquet")
    ids = [c.id for c in evaluation.held_out]
    student, teacher = (predict(*logits_by_order(frame.filter(judge=name), ids)) for name in ("student", "teacher"))
    losses = log_loss_rows(student, np.array([c.votes for c in evaluation.held_out]))
    for name, by in (("worst", losses), ("disagreed", kl_rows(teacher, student))):
        best = pl.DataFrame({"id": ids, "group": [c.group for c in evaluation.held_out], "by": by})
        best = best.sort("by", descending=True).unique("group", keep="first", maintain_order=True).head(20)
        assert [row["id"] for row in reading[name]] == best["id"].to_list()
        for row in reading[name]:
            assert row["student"] == pytest.approx(student[ids.index(row["id"])])
            assert row["rival"] == pytest.approx(teacher[ids.index(row["id"])])


def test_page_needs_nothing_beside_it_and_its_links_lead_somewhere(evaluation: Evaluated, page: Page) -> None:
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "srcset", "onclick", "onload"} and not {"script", "link", "img", "iframe"} & set(
        page.tags
    )
    assert "url(" not in evaluation.page and "@import" not in evaluation.page
    assert "default-src 'none'" in evaluation.page
    targets = [value for name, value in page.attributes if name == "id"]
    assert len(targets) == len(set(targets))
    links = {unquote(value.removeprefix("#")) for name, value in page.attributes if name == "href"}
    assert links <= set(targets) and len(links) > 10
    assert len(evaluation.page) < 1_500_000
    assert not re.search(r"\b(nan|inf)%?\b", evaluation.page)


def test_every_judge_leads_up_to_the_data(page: Page) -> None:
    links = [value for name, value in page.attributes if name == "href"]
    for place in ("students/student/fold%3D0", "exports/run/w8a8", "logits/big", "data/arena"):
        assert f"#{place}" in links
    assert {"data/arena", "logits/big", "students/student/fold=0"} <= {v for name, v in page.attributes if name == "id"}


def test_pairs_ratings_lengths_and_slices_are_told(evaluation: Evaluated, page: Page) -> None:
    metrics = opened(evaluation)["metrics.json"]
    sources = {source for source, _, _ in page.sourced}
    for judge in ("teacher", "student_w8a8", "student_no_teacher", "other.one"):
        assert {
            f"metrics.json#/differences/student/{judge}/log_loss/{of}" for of in ("difference", "ci/0", "ci/1", "p")
        } <= sources
        assert f"metrics.json#/differences/surface/{judge}/log_loss/p" in sources
        rating = f"metrics.json#/leaderboard/models/0/judges/{judge}"
        assert {f"{rating}/{of}" for of in ("rating", "low", "high")} <= sources
    assert "metrics.json#/judges/student/biases/verbosity/table/0/log_loss" in sources
    for slices in ("language", "rounds", "prompt_length", "truncation"):
        assert metrics["judges"]["student"]["biases"][slices]["sentence"] in page.text


def test_unconvincing_judges_are_marked_everywhere(evaluation: Evaluated, page: Page, tmp_path: Path) -> None:
    metrics = opened(evaluation)["metrics.json"]
    assert metrics["judges"]["student_no_teacher"]["beats_surface"] is False, "it guesses"
    marked = {name for name, of in metrics["judges"].items() if of["beats_surface"] is False} - {
        "prior",
        "bradley_terry",
    }
    assert page.text.count("does not beat surface") == len(marked - {"bayes"}) > 0
    line = surface_line(typed(tmp_path, metrics))
    assert line is not None and "student_no_teacher" in line.plain and "prior" not in line.plain
    metrics["judges"] = {name: of | {"beats_surface": True} for name, of in metrics["judges"].items()}
    convincing = typed(tmp_path, metrics)
    assert surface_line(convincing) is None
    assert "entropy of the simulated true distribution" in str(bayes_line(convincing))
    assert bayes_line(replace(convincing, bayes=None)) is None


def test_hostile_texts_and_names_are_escaped(evaluation: Evaluated, tmp_path: Path) -> None:
    evil = Conversation(EVIL, [EVIL], [EVIL], [EVIL], EVIL, EVIL, [1.0, 0.0, 0.0], group=EVIL, source=EVIL)
    again = evaluate(tmp_path, name=EVIL, conversations={c.id: evil for c in evaluation.held_out})
    found = Page(again.page)
    assert "script" not in found.tags and "onload" not in {name for name, _ in found.attributes}
    assert found.text.count(EVIL) == 2 + 8 * 40  # 2 names; snippet, id, source, prompt, 2 responses, 2 models


def test_hostile_manifests_and_model_names_are_escaped(evaluation: Evaluated, tmp_path: Path) -> None:
    metrics = opened(evaluation)["metrics.json"]
    metrics["leaderboard"]["models"][0]["model"] = EVIL
    metrics["judges"]["student"]["biases"]["position"]["sentence"] = EVIL
    found = Page(rendered(evaluation, tmp_path, metrics, command=EVIL, created=EVIL))
    assert "script" not in found.tags and "onload" not in {name for name, _ in found.attributes}
    assert found.text.count(EVIL) == 4


def rendered(
    evaluation: Evaluated,
    path: Path,
    metrics: dict[str, Any],
    histories: dict[str, pl.DataFrame] | None = None,
    **of: Any,
) -> str:
    """A report of `metrics` alone; the student's manifest is changed to have `of`."""
    folder = evaluation.root / "students" / "student" / "fold=0"
    lineage = trace({"student": folder}, evaluation.root / "data" / "arena", evaluation.root)
    manifests = dict(lineage.manifests)
    manifests["students/student/fold=0"] = replace(manifests["students/student/fold=0"], **of)
    conversations, lineage = {c.id: c for c in evaluation.held_out}, replace(lineage, manifests=manifests)
    report = Report("bare", typed(path, metrics), conversations, histories or {}, {}, lineage)
    write_report(path / "report.html", report)
    return (path / "report.html").read_text(encoding="utf-8")


def test_report_does_without_teacher_history_people_names_and_comparison(evaluation: Evaluated, tmp_path: Path) -> None:
    metrics = opened(evaluation)["metrics.json"]
    metrics["judges"] = {name: metrics["judges"][name] for name in ("prior", "surface", "student")}
    metrics |= {"gain": None, "humans": None, "leaderboard": None, "bayes": None, "teacher": None}
    metrics["reading"]["rival"] = "surface"
    text = Page(rendered(evaluation, tmp_path, metrics)).text
    assert "Against the student" not in text, "nobody is there to compare it with"
    assert "The student's log loss is" in text and "Training" not in text and "Leaderboard" not in text
    assert "Where student and surface disagree most" in text and "KL to teacher" not in text.split("How to read it")[0]
    del metrics["judges"]["prior"]
    assert "The student has a log loss of" in Page(rendered(evaluation, tmp_path, metrics)).text


OF_VOTES = (  # what is about votes whoever judges are measured by
    *("the student, trained on votes alone", "trained on votes and the teacher", "stand for votes"),
    *("The validation log loss is on votes for both", "without any vote", "as people wrote them"),
    "the student's teachers saw the votes of",
)


def test_where_the_teacher_is_the_truth_nothing_is_said_of_voters(tmp_path: Path) -> None:
    """Neither on the page nor on the screen: they say the teacher instead."""
    evaluation = evaluate(tmp_path, rows=90, repeated=False, truth="teacher")
    metrics = read_result(Evaluation, evaluation.folder / "metrics.json")
    printed = "\n".join(str(line) for line in lines(metrics))
    words = " ".join(without_conversations(evaluation).split())
    for phrase in OF_VOTES:
        words, printed = words.replace(phrase, ""), printed.replace(phrase, "")
    assert not re.findall(r".{30}(?:[Vv]ot(?:e|er)s?\b|[Vv]oted|[Pp]eople).{30}", words)
    assert not re.search(r"vote[sd]?\b|people", printed) and "of the teacher's probabilities (90% asked)" in printed
    biases = metrics.judges["student_w8a8"].biases
    assert "points above the teacher's (" in biases["verbosity"].sentence
    assert biases["verbosity_at_ties"].sentence.startswith("Where the teacher expects a tie, the judge's lean")
    for phrase in ("win more often than it does with the teacher?", "rated from the teacher's probabilities on"):
        assert phrase in words


def without_conversations(evaluation: Evaluated) -> str:
    """The text of a page without that of its conversations, and without its style."""
    page = re.sub(r"<style>.*?</style>|<details class=\"talk\">.*?</details>", "", evaluation.page, flags=re.DOTALL)
    return Page(page).text


def test_diverged_training_still_gives_a_report(evaluation: Evaluated, tmp_path: Path) -> None:
    diverged = history(validations=False).with_columns(loss=pl.lit(float("nan")))
    diverged[0, "loss"] = 1.0
    page = rendered(evaluation, tmp_path, opened(evaluation)["metrics.json"], {"student": diverged})
    assert "training loss" in page and "validation log loss</figcaption>" not in page


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (
            {"difference": 0.02, "ci": [0.01, 0.03], "p": 0.01, "beats": True},
            "Distillation lowered the student's log loss by +0.0200 nats",
        ),
        (
            {"difference": -0.02, "ci": [-0.03, -0.01], "p": 0.01, "beats": False},
            "Distillation raised the student's log loss: gain -0.0200 nats",
        ),
        (
            {"difference": 0.02, "ci": [-0.01, 0.05], "p": 0.2, "beats": False},
            "No measurable gain from distillation: +0.0200 nats",
        ),
    ],
)
def test_headline_says_only_what_the_interval_allows(
    gain: dict[str, Any], words: str, evaluation: Evaluated, tmp_path: Path
) -> None:
    metrics = opened(evaluation)["metrics.json"] | {"gain": gain}
    assert words in Page(rendered(evaluation, tmp_path, metrics)).text


def test_what_people_and_exports_say_is_shown_with_its_intervals(
    evaluation: Evaluated, page: Page, tmp_path: Path
) -> None:
    files, sources = opened(evaluation), {source for source, _, _ in page.sourced}
    for figure in ("agreement", "majority", "largest_share", "entropy"):
        place = f"metrics.json#/humans/{figure}"
        assert {place, f"{place}_ci/0", f"{place}_ci/1"} <= sources
    assert "Neither is a ceiling" in page.text
    lost = files["exports/run/w8a8/fidelity.json"]["differences"]
    for figure, of in lost.items():
        place = f"exports/run/w8a8/fidelity.json#/differences/{figure}"
        shown = ["difference", "ci/0", "ci/1", "limit", "verdict", *["rows_needed"] * (of["rows_needed"] is not None)]
        assert {f"{place}/{name}" for name in shown} <= sources
    assert {of["verdict"] for of in lost.values()} >= {"beyond", "cannot tell"}
    line = checks_line(typed(tmp_path, metrics := files["metrics.json"]))
    assert line is not None and "student_w8a8 failed its checks: verdicts differs" in line.plain
    passed = {name: of | {"failed": []} for name, of in metrics["judges"].items()}
    assert checks_line(typed(tmp_path, metrics | {"judges": passed})) is None


def test_few_prompts_are_told_by_table_and_page(tmp_path: Path) -> None:
    evaluation = evaluate(tmp_path, rows=40)
    metrics, output = opened(evaluation)["metrics.json"], io.StringIO()
    Console(file=output, width=200).print(table(typed(tmp_path, metrics)))
    assert metrics["intervals"] == metrics["humans"]["intervals"] == "jackknife"
    assert "jackknife, for few prompts" in output.getvalue()
    text = Page(evaluation.page).text
    assert text.count("by the jackknife and Student's t") == 2 and "draws of first prompts" not in text


def test_long_texts_are_cut_with_a_note_and_turns_stay_side_by_side() -> None:
    conversation = Conversation("1", ["p", "q"], ["x" * (LONGEST + 1234)], ["b", "c", "d"])
    (first, second, third) = turns(conversation)
    assert first[1].endswith("[... 1,234 more characters]") and first[1].startswith("x" * LONGEST)
    assert second == ("q", "", "c") and third == ("", "", "d")


def test_a_long_table_keeps_its_most_frequent_rows_in_order() -> None:
    values = [None if i % 5 == 0 else 0.1 for i in range(31)]
    rows = [Row(x="", value=value, low=value, high=value, count=i * 7 % 31) for i, value in enumerate(values)]
    kept = shown_rows(rows)
    assert len(kept) == 12 and [i for i, _ in kept] == sorted(i for i, _ in kept)
    left = [row.count for i, row in enumerate(rows) if row.value is not None and i not in dict(kept)]
    assert min(row.count for _, row in kept) > max(left)
