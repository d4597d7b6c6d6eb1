"""The plots of docs/results.md from what `make proof` measured: python -m proof.figures artifacts docs/images

Plotly draws them in Chromium, which has to be on the machine. What was not measured has no plot.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import plotly.graph_objects as go

from core.json_files import read_json
from eval.evaluation import METRICS
from eval.results import SEEDS
from eval.scaling import FEWEST, Run, forecast, misfit

SIZES = ("proof_gpt4_1k", "proof_gpt4_4k", "proof_gpt4")
HARD = "loss=votes"
NAMES = {"prior": "shares of the labels", "surface": "length and layout", "bradley_terry": "model names"}
BLUE, RED, GREY, GREEN = "#2563eb", "#dc2626", "#6b7280", "#059669"
ERRORS = 3.92  # standard errors from one end of a 95% interval to the other
WIDTH, HEIGHT = 760, 400
REMEDY = "run make proof"
Figures = Mapping[str, Callable[[Path], go.Figure]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="where the artefacts are")
    parser.add_argument("output", type=Path, help="a folder for the plots")
    told = parser.parse_args()
    drawn = {}
    for name, draw in FIGURES.items():
        try:
            drawn[name] = draw(told.root)
        except FileNotFoundError as error:
            print(f"{name}: left out, {error.filename} is missing")
    save(drawn, told.output)


def results(root: Path, run: str) -> dict[str, Any]:
    """The judges of an evaluation, by name: over its seeds where it has several."""
    folder = root / "eval" / run
    (folder / METRICS).stat()
    judges = dict(read_json(folder / METRICS, REMEDY)["judges"])
    judges |= {HARD: judges["student_no_teacher"]} if "student_no_teacher" in judges else {}
    return judges | (read_json(folder / SEEDS, REMEDY)["judges"] if (folder / SEEDS).exists() else {})


def printed(path: Path) -> dict[str, Any]:
    """What a script of `proof` or `bench` printed last."""
    return dict(json.loads(path.read_text().splitlines()[-1]))


def soft_against_hard(root: Path) -> go.Figure:
    """Log loss of GPT-4's students by training pairs, beside the baselines."""
    found = {trained_on(root, run): results(root, run) for run in SIZES}
    pairs = [*found]
    figure = go.Figure()
    for name, judge, colour in (("soft targets", "student", BLUE), ("its hard verdicts", HARD, RED)):
        of = {size: judges[judge] for size, judges in found.items() if judge in judges}
        figure.add_trace(points([*of], [*of.values()], name, colour))
    judges = found[max(pairs)]
    for judge in ("prior", "surface", "bradley_terry", "teacher"):
        level = judges[judge]["log_loss"]
        figure.add_hline(
            level,
            line_dash="dot",
            line_color=GREY,
            annotation_text=NAMES.get(judge, "GPT-4 Turbo itself"),
            annotation_position="top left",
        )
    figure.update_xaxes(type="log", title="training pairs", tickvals=pairs, ticktext=[f"{n:,}" for n in pairs])
    figure.update_yaxes(title="log loss against GPT-4 Turbo (nats)")
    return figure


def points(x: Sequence[float], of: Sequence[Mapping[str, Any]], name: str, colour: str) -> go.Scatter:
    """Log losses with 95% intervals."""
    values = [judge["log_loss"] for judge in of]
    bars = error_bars(values, [judge["log_loss_ci"] for judge in of])
    return go.Scatter(x=x, y=values, error_y=bars, name=name, mode="lines+markers", line_color=colour)


def error_bars(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Plotly's bars from each interval's one end to the other."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in zip(values, intervals, strict=True)],
        "arrayminus": [value - low for value, (low, _) in zip(values, intervals, strict=True)],
        "thickness": 1,
    }


def trained_on(root: Path, run: str) -> int:
    """How many conversations the student of a run learned from."""
    return int(read_json(root / "students" / run / "fold=0" / "manifest.json", REMEDY)["rows"]["training"])


def what_more_would_buy(root: Path) -> go.Figure:
    """The law through the students on soft targets, and the next two doublings."""
    of = {trained_on(root, run): results(root, run)["student"] for run in SIZES}
    runs = [
        Run(size, judge["log_loss"], (judge["log_loss_ci"][1] - judge["log_loss_ci"][0]) / ERRORS)
        for size, judge in of.items()
    ]
    assert len(runs) >= FEWEST
    largest = max(of)
    sizes = [round(min(of) * (4 * largest / min(of)) ** (step / 40)) for step in range(41)]
    law = forecast(runs, sizes)
    figure = go.Figure()
    bounds = [[each.log_loss_ci[end] for each in law] for end in (0, 1)]
    figure.add_trace(go.Scatter(x=sizes, y=bounds[1], line_width=0, showlegend=False))
    figure.add_trace(
        go.Scatter(
            x=sizes, y=bounds[0], line_width=0, fill="tonexty", fillcolor="rgba(37,99,235,0.15)", name="95% interval"
        )
    )
    figure.add_trace(go.Scatter(x=sizes, y=[each.log_loss for each in law], name="fitted law", line_color=BLUE))
    figure.add_trace(points([*of], [*of.values()], "measured", RED).update(mode="markers"))
    ticks = [*of, 2 * largest, 4 * largest]
    if problem := misfit(runs):
        figure.update_layout(title=f"the law does not fit: {problem}", title_font_size=12)
    figure.update_xaxes(type="log", title="training pairs", tickvals=ticks, ticktext=[f"{n:,}" for n in ticks])
    figure.update_yaxes(title="log loss against GPT-4 Turbo (nats)")
    return figure


def human_votes(root: Path) -> go.Figure:
    """Judges of human votes with their intervals."""
    judged = results(root, "proof_human")
    two_stage = next(name for name in judged if name.startswith("model.base="))
    shown = {
        "prior": NAMES["prior"],
        "surface": NAMES["surface"],
        "gpt4_student": "GPT-4's student, scale and ties fitted",
        "student": "trained on the votes",
        two_stage: "GPT-4's student, then the votes",
    }
    of = {name: judged[judge] for judge, name in shown.items() if judge in judged}
    mixed = printed(root / "proof" / "mixture.txt")["mixture"]
    return dots({**of, "the last three with length and layout, seed 0": mixed}, "log loss on human votes (nats)")


def dots(of: Mapping[str, Mapping[str, Any]], title: str) -> go.Figure:
    """One line a judge, the first on top."""
    names = [*of][::-1]
    values = [of[name]["log_loss"] for name in names]
    bars = error_bars(values, [of[name]["log_loss_ci"] for name in names])
    marker = {"size": 9, "color": BLUE}
    figure = go.Figure(go.Scatter(x=values, y=names, mode="markers", marker=marker, error_x=bars))
    figure.update_xaxes(title=title)
    return figure


def exports(root: Path) -> go.Figure:
    """Log loss against conversations a second, by format and engine."""
    rates = printed(root / "proof" / "formats.txt")["per_second"]
    judges = results(root, "proof_gpt4")
    figure = go.Figure()
    for name, rate in rates.items():
        format, engine = name.split()
        loss = judges[f"student_{format}"]["log_loss"]
        colour = {"loop": GREY, "transformers": BLUE, "vllm": GREEN}[engine]
        figure.add_trace(
            go.Scatter(
                x=[rate], y=[loss], text=[name], mode="markers+text", textposition="top center", marker_color=colour
            )
        )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title="conversations a second on a CPU", rangemode="tozero")
    figure.update_yaxes(title="log loss against GPT-4 Turbo (nats)")
    return figure


def lengths(root: Path) -> go.Figure:
    """What twice the words are worth to judges, their teacher and people."""
    figure = go.Figure()
    for file, colour, name in (("length_gpt4", BLUE, "AlpacaEval's prompts"), ("length_human", RED, "human votes")):
        of = printed(root / "proof" / f"{file}.txt")
        shown = {judge: said for judge, said in of.items() if judge in SHOWN}
        slopes = [said["slope"] for said in shown.values()]
        bars = error_bars(slopes, [said["ci"] for said in shown.values()])
        places = [SHOWN[judge] for judge in shown]
        figure.add_trace(go.Bar(x=places, y=slopes, error_y=bars, name=name, marker_color=colour))
    figure.update_yaxes(title="nats for twice the words")
    return figure


SHOWN = {
    "people": "people",
    "teacher": "GPT-4 Turbo",
    "surface": "length and layout",
    "student": "a student trained on them",
    "two_stage": "GPT-4's student, then votes",
}
FIGURES: Figures = {
    "proof_soft_hard": soft_against_hard,
    "proof_votes": human_votes,
    "proof_law": what_more_would_buy,
    "proof_exports": exports,
    "proof_lengths": lengths,
}


def save(figures: Mapping[str, go.Figure], folder: Path) -> None:
    """Write each as an SVG."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        for name, figure in figures.items():
            figure.update_layout(
                template="plotly_white", width=WIDTH, height=HEIGHT, margin={"l": 70, "r": 30, "t": 30, "b": 60}
            )
            page.set_content(figure.to_html(include_plotlyjs=True, div_id="plot"))
            url = page.evaluate("Plotly.toImage('plot', {format: 'svg'})")
            path = folder / f"{name}.svg"
            path.write_text(unquote(url.split(",", 1)[1]))
            print(path)
        browser.close()


if __name__ == "__main__":
    main()
