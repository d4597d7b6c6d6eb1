"""What an evaluation shows: a table for the terminal, and `report.html`, one file that needs nothing beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.table import Table
from rich.text import Text

from core.records import LABELS, Conversation
from eval.metrics import METHODS
from eval.report.charts import Axis, training_plots
from eval.report.lineage import Lineage
from eval.report.sources import METRICS, Sources

# judges from what knows nothing to what knows most; further ones come before the teacher
LADDER = {
    "prior": "vote frequencies alone",
    "surface": "length and layout of the responses",
    "bradley_terry": "who wrote the responses, unread",
    "student_no_teacher": "the student, trained on votes alone",
    "student": "trained on votes and the teacher",
    "student_merged": "the student in fp16",
    "student_w8a8": "int8 weights and activations",
    "student_w8a16": "int8 weights",
    "student_w4a16": "int4 weights",
    "student_gptq": "int8 weights, GPTQ layout",
    "student_gguf": "int8 weights, llama.cpp",
    "teacher": "the large judge",
    "bayes": "the best that any judge can do here",
}
UNREAD = ("prior", "surface", "bradley_terry", "bayes")  # judges that read no response, or all votes
BIASES = {
    "position": "Does what is shown first win more often?",
    "verbosity": "Does length win more often than it does with people?",
    "verbosity_at_ties": "Does length win where people find both equally good?",
    "self_enhancement": "Does its own family win more often than it does with people?",
    "families": "Does any model family win more often than it does with people?",
    "format": "Does markup win more often than it does with people?",
    "refusals": "Do refusals win more often than they do with people?",
}
SLICES = {
    "language": "Language of the prompt",
    "rounds": "Rounds",
    "prompt_length": "Length of the prompt",
    "truncation": "Prompts that had to be cut",
}
TEMPLATE = "page.html.j2"
ROWS = 12  # of a bias's plot: families may be many more
LONGEST = 4000  # characters of a text that are shown
ABREAST = 5  # judges whose biases are drawn side by side; of more, those in `CLOSELY`
CLOSELY = ("student_no_teacher", "student", "student_w8a8", "teacher")


def ordered(judges: Iterable[str]) -> list[str]:
    """Judges as in `LADDER`, those that are not in it before the teacher, its mixture's parts among them."""
    places = {judge: i for i, judge in enumerate(LADDER)}
    return sorted(judges, key=lambda judge: places.get(judge, places["teacher"] - 0.5))


def unconvincing(judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Judges that read the responses and do not measurably beat the one that only looks at them."""
    return [judge for judge in ordered(judges) if judge not in UNREAD and judges[judge]["beats_surface"] is False]


def table(metrics: Mapping[str, Any]) -> Table:
    """`judges` of metrics.json for the terminal, in order, a red mark at those that do not beat `surface`."""
    judges, method = metrics["judges"], METHODS[metrics["intervals"]]
    result = Table(
        caption=f"log loss in nats with its 95% interval ({method}); flips: the verdict changes with the order shown"
    )
    result.add_column("judge", no_wrap=True)
    for heading in ("log loss", "95% interval", "accuracy", "ECE", "flips", "held out"):
        result.add_column(heading, justify="right")
    marked = unconvincing(judges)
    for judge in ordered(judges):
        of = judges[judge]
        if judge == "bayes":
            result.add_section()
        result.add_row(
            Text.assemble(judge, (" ✗", "bold red") if judge in marked else ""),
            f"{of['log_loss']:.4f}",
            "{:.4f}–{:.4f}".format(*of["log_loss_ci"]),
            *(f"{of[name]:.1%}" for name in ("accuracy", "ece", "flip_rate")),
            {0: "yes", None: "not known"}.get(of["taught"], "no"),
            style="bold" if judge == "student" else None,
        )
    return result


def rows_line(metrics: Mapping[str, Any]) -> str:
    """Which rows were scored, and which judges do not hold them out."""
    rows, judges = metrics["rows"], metrics["judges"]
    where = "the locked test split" if metrics["split"] == "test" else "the fold that the student holds out"
    parts = [f"Scored: {rows:,} conversations of {where}."]
    for judge in ordered(judges):
        if taught := judges[judge]["taught"]:
            parts.append(f"{judge}: cross-validated, its teachers saw {taught:,} of {rows:,} of these votes.")
        elif taught is None:
            parts.append(f"{judge}: nobody can tell what it learned from.")
        if alike := judges[judge]["alike"]:
            parts.append(f"{judge}: {alike:,} of them look the same in both orders, equal or cut where they differ.")
    return "\n".join(parts)


def surface_line(metrics: Mapping[str, Any]) -> Text | None:
    """Which judges do not beat the surface baseline, None where all do."""
    marked = unconvincing(metrics["judges"])
    if not marked:
        return None
    return Text(f"✗ no better than length and layout alone: {', '.join(marked)}", "red")


def checks_line(metrics: Mapping[str, Any]) -> Text | None:
    """Which exports failed their checks or gave no answer, and why; None where none did."""
    failed = {judge: of["failed"] for judge, of in metrics["judges"].items() if of["failed"]}
    lines = [f"✗ {judge} failed its checks: {'; '.join(failed[judge])}" for judge in failed]
    lines += [f"✗ {judge} gave no answer: {reason}" for judge, reason in metrics.get("unanswered", {}).items()]
    return Text("\n".join(lines), "red") if lines else None


def bayes_line(metrics: Mapping[str, Any]) -> str | None:
    """What no judge can beat, None where that is not known."""
    if metrics["bayes"] is None:
        return None
    return (
        f"No judge can expect less than {metrics['bayes']:.4f} on these {metrics['rows']} conversations "
        "(the entropy of the simulated law)."
    )


def write_report(
    path: Path,
    *,
    name: str,
    metrics: Mapping[str, Any],
    conversations: Mapping[str, Conversation],
    histories: Mapping[str, pl.DataFrame],
    fidelities: Mapping[str, Mapping[str, Any]],
    lineage: Lineage,
) -> None:
    """Write the report of one evaluation to `path`.

    `metrics` is what `measuring.measure` gives, `conversations` holds those of its `reading` by id, `histories` the
    training of judges (`step`, `loss`, `validation_log_loss` with nulls), `fidelities` what `fidelity.fidelity` gave of
    exports. Every number names the file and the place that it was read from (`eval/report/sources.py`). Every text is
    escaped, and a content policy in the page keeps scripts from running.
    """
    files = {METRICS: metrics, **{f"{place}/manifest.json": asdict(of) for place, of in lineage.manifests.items()}}
    files |= {history_of(lineage, judge): of.to_dict(as_series=False) for judge, of in histories.items()}
    files |= {fidelity_of(lineage, judge): of for judge, of in fidelities.items()}
    sources = Sources(files)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    judges = metrics["judges"]
    readers = [judge for judge in ordered(judges) if judge not in UNREAD]
    closely = readers if len(readers) <= ABREAST else [judge for judge in CLOSELY if judge in readers]
    environment.globals |= {
        "show": sources.show,
        "between": sources.between,
        "tip": sources.tip,
        "Axis": Axis,
        "labels": LABELS,
        "metrics": metrics,
        "of": judges,
        "judges": ordered(judges),
        "readers": readers,
        "marked": unconvincing(judges),
        "ladder": LADDER,
        "biases": BIASES,
        "slices": SLICES,
        "told": told,
        "leaning": lambda bias: leaning(judges, bias, closely),
        "unknown": lambda bias, shown: unknown(judges, bias, shown),
        "reach": lambda shown, *what: reach([judges[judge] for judge in shown], *what),
        "rounds": rounds,
        "lineage": lineage,
        "history_of": lambda judge: history_of(lineage, judge),
        "fidelity_of": lambda judge: fidelity_of(lineage, judge),
        "fidelities": {judge: fidelities[judge] for judge in readers if judge in fidelities},
    }
    trained = {judge: histories[judge] for judge in ("student", "student_no_teacher") if judge in histories}
    plots = training_plots(trained, ("loss", "validation_log_loss"))
    page = environment.get_template(TEMPLATE).render(name=name, conversations=conversations, training=plots)
    path.write_text(page, encoding="utf-8")


def history_of(lineage: Lineage, judge: str) -> str:
    """The file that a judge's training is kept in, as the page names it."""
    return f"{lineage.places[judge]}/history.parquet"


def fidelity_of(lineage: Lineage, judge: str) -> str:
    """The file that says what an export lost, as the page names it."""
    return f"{lineage.places[judge]}/fidelity.json"


def told(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """The rows of a bias's table that have a value, with their places; of many, those of most conversations."""
    known = [(i, row) for i, row in enumerate(rows) if row["value"] is not None]
    return sorted(sorted(known, key=lambda at: -at[1]["count"])[:ROWS], key=lambda at: at[0])


def leaning(judges: Mapping[str, Any], bias: str, closely: Sequence[str]) -> tuple[list[str], Axis]:
    """The judges with a measured bias, of these those in `closely` if there are any; the axis of its parts and zero."""
    there = [judge for judge in ordered(judges) if judge not in UNREAD and bias in judges[judge]["biases"]]
    shown = [judge for judge in there if judge in closely] or there
    rows = [row for judge in shown for _, row in told(judges[judge]["biases"][bias]["table"])]
    return shown, Axis.over([0, *(row[end] for row in rows for end in ("low", "high"))])


def unknown(judges: Mapping[str, Any], bias: str, shown: Sequence[str]) -> bool:
    """Whether nothing can be told of the bias of any judge."""
    tables = [judges[judge]["biases"][bias] for judge in shown]
    return not any(of["value"] is not None or told(of["table"]) for of in tables)


def reach(
    rows: Sequence[Mapping[str, Any]], inside: Sequence[str], figure: str, bounds: Sequence[tuple[str, float]]
) -> Axis:
    """The axis of the intervals of a figure that lies `inside` each of `rows`, and of the `bounds`."""
    ends = [value for _, value in bounds]
    for row in rows:
        for key in inside:
            row = row[key]
        ends += row[f"{figure}_ci"]
    return Axis.over(ends)


def rounds(conversation: Conversation) -> list[tuple[str, str, str]]:
    """(prompt, response a, response b) of each round, long ones cut; one side may have stopped before the other."""
    asked, a, b = (
        [shortened(text) for text in side]
        for side in (conversation.prompt, conversation.response_a, conversation.response_b)
    )
    return list(zip_longest(asked, a, b, fillvalue=""))


def shortened(text: str) -> str:
    """The beginning of a long text, with a note of what is missing."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n\n[... {len(text) - LONGEST:,} more characters]"
