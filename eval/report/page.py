"""`report.html`: one file that shows an evaluation and needs nothing beside it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from core.records import Conversation
from core.tables import read_parquet
from eval.conclusions import Row
from eval.evaluation import METRICS, Evaluation, JudgeResult
from eval.fidelity import FIDELITY, Fidelity, read_fidelities
from eval.report.charts import Axis, cascade_charts, cost_charts, training_plots
from eval.report.ladder import LADDER, UNREAD, ordered, unconvincing
from eval.report.lineage import Lineage, trace
from eval.report.sources import Sources
from eval.slices import TAG
from eval.truth import TRUTHS

BIASES = {  # `who`: people, or who stands for them
    "position": "Does what is shown first win more often?",
    "verbosity": "Does length win more often than it does with {who}?",
    "verbosity_at_ties": "Does length win between responses that are equally good to {who}?",
    "self_enhancement": "Does its own family win more often than it does with {who}?",
    "families": "Does any model family win more often than it does with {who}?",
    "format": "Does markup win more often than it does with {who}?",
    "refusals": "Do refusals win more often than they do with {who}?",
}
SLICES = {
    "language": "Language of the prompt",
    "rounds": "Turns",
    "prompt_length": "Length of the prompt",
    "truncation": "Prompts that had to be cut",
    "both_bad": "Ties between two bad responses",
}
TEMPLATE = "page.html.j2"
HISTORY = "history.parquet"
ROWS = 12  # of a bias's plot: families may be many more
LONGEST = 4000  # characters of a text that are shown
ABREAST = 5  # judges whose biases are drawn side by side; of more, those in `CLOSELY`
CLOSELY = ("student_no_teacher", "student", "student_w8a8", "teacher")
TRAINED = ("student", "student_no_teacher")  # whose training is drawn


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    `conversations` holds those of the examples by id, `histories` the training of judges (`step`, `loss`,
    `validation_log_loss` with nulls), `fidelities` what exports lost, both by judge.
    """

    name: str
    evaluation: Evaluation
    conversations: Mapping[str, Conversation]
    histories: Mapping[str, pl.DataFrame]
    fidelities: Mapping[str, Fidelity]
    lineage: Lineage

    @classmethod
    def of(
        cls,
        name: str,
        evaluation: Evaluation,
        scored: Sequence[Conversation],
        artefacts: Mapping[str, Path],
        data: Path,
        root: Path,
    ) -> Self:
        """With what lies beside the judges' `artefacts`, and what these were made from, up to the `data`."""
        conversations = {c.id: c for c in scored}
        histories = {judge: path / HISTORY for judge, path in artefacts.items() if (path / HISTORY).exists()}
        return cls(
            name,
            evaluation,
            conversations,
            {judge: read_parquet(path) for judge, path in histories.items()},
            read_fidelities(artefacts),
            trace(artefacts, data, root),
        )


def write_report(path: Path, report: Report) -> None:
    """Write the report of one evaluation to `path`.

    Every number names the file and the place that it was read from (`eval/report/sources.py`). Every text is escaped,
    and a content policy in the page keeps scripts from running.
    """
    environment = templates()
    environment.globals |= _known(report)
    environment.globals |= _functions(report)
    histories = {judge: report.histories[judge] for judge in TRAINED if judge in report.histories}
    plots = training_plots(histories, ("loss", "validation_log_loss"))
    page = environment.get_template(TEMPLATE).render(
        name=report.name, conversations=report.conversations, training=plots
    )
    path.write_text(page, encoding="utf-8")


def templates(*folders: Path) -> Environment:
    """The templates of a page's `folders` and of this one; every text is escaped, and an unknown name is an error."""
    return Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _known(report: Report) -> dict[str, Any]:
    """The results and words that templates read."""
    judges, truth = report.evaluation.judges, TRUTHS[report.evaluation.truth]
    readers = _readers(judges)
    return {
        "truth": truth,
        "metrics": report.evaluation,
        "of": judges,
        "judges": ordered(judges),
        "readers": readers,
        "marked": unconvincing(judges),
        "fidelities": {judge: report.fidelities[judge] for judge in readers if judge in report.fidelities},
        "lineage": report.lineage,
        "labels": report.evaluation.labels,
        "chance": math.log(len(report.evaluation.labels)),
        "ladder": LADDER | {"prior": f"{truth.frequencies} alone"},
        "with_sets": [judge for judge in readers if judges[judge].sets],
        "cost_charts": cost_charts(report.evaluation.costs),
        "cascade_charts": cascade_charts(report.evaluation.cascades, report.evaluation.costs),
        "biases": {name: question.format(who=truth.who) for name, question in BIASES.items()},
        "slices": SLICES | tags_of(judges["student"]),
    }


def tags_of(judge: JudgeResult) -> dict[str, str]:
    """What the slices by tag are called."""
    tags = [name.removeprefix(TAG) for name in judge.biases if name.startswith(TAG)]
    return {TAG + tag: tag.replace("_", " ").capitalize() for tag in tags}


def _functions(report: Report) -> dict[str, Any]:
    """The functions that templates call."""
    judges, lineage = report.evaluation.judges, report.lineage
    readers = _readers(judges)
    closely = readers if len(readers) <= ABREAST else [judge for judge in CLOSELY if judge in readers]
    files: dict[str, Any] = {METRICS: asdict(report.evaluation)}
    files |= {f"{place}/manifest.json": asdict(of) for place, of in lineage.manifests.items()}
    files |= {history_of(lineage, judge): of.to_dict(as_series=False) for judge, of in report.histories.items()}
    files |= {fidelity_of(lineage, judge): asdict(of) for judge, of in report.fidelities.items()}
    sources = Sources(files)
    return {
        "show": sources.show,
        "between": sources.between,
        "tip": sources.tip,
        "Axis": Axis,
        "shown_rows": shown_rows,
        "turns": turns,
        "leaning": lambda bias: leaning(judges, bias, closely),
        "unknown": lambda bias, shown: unknown(judges, bias, shown),
        "reach": lambda shown, *what: reach([judges[judge] for judge in shown], *what),
        "history_of": lambda judge: history_of(lineage, judge),
        "fidelity_of": lambda judge: fidelity_of(lineage, judge),
    }


def _readers(judges: Mapping[str, JudgeResult]) -> list[str]:
    """The judges that read responses, in order."""
    return [judge for judge in ordered(judges) if judge not in UNREAD]


def history_of(lineage: Lineage, judge: str) -> str:
    """The file that a judge's training is kept in, as the page names it."""
    return f"{lineage.places[judge]}/{HISTORY}"


def fidelity_of(lineage: Lineage, judge: str) -> str:
    """The file that says what an export lost, as the page names it."""
    return f"{lineage.places[judge]}/{FIDELITY}"


def shown_rows(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """The rows of a bias's table that have a value, with their places; of many, those of most conversations."""
    known = [(i, row) for i, row in enumerate(rows) if row.value is not None]
    return sorted(sorted(known, key=lambda at: -at[1].count)[:ROWS], key=lambda at: at[0])


def leaning(judges: Mapping[str, JudgeResult], bias: str, closely: Sequence[str]) -> tuple[list[str], Axis]:
    """The judges with a measured bias, of these those in `closely` if there are any; the axis of its rows and zero."""
    there = [judge for judge in _readers(judges) if bias in judges[judge].biases]
    shown = [judge for judge in there if judge in closely] or there
    rows = [row for judge in shown for _, row in shown_rows(judges[judge].biases[bias].table)]
    return shown, Axis.over([0, *(end for row in rows for end in (row.low, row.high))])


def unknown(judges: Mapping[str, JudgeResult], bias: str, shown: Sequence[str]) -> bool:
    """Whether nothing is known of the bias of any judge."""
    measured = [judges[judge].biases[bias] for judge in shown]
    return not any(of.value is not None or shown_rows(of.table) for of in measured)


def reach(
    results: Sequence[JudgeResult], inside: Sequence[str], figure: str, bounds: Sequence[tuple[str, float]]
) -> Axis:
    """The axis of the intervals of a figure, `inside` a group of each of `results` or not, and of the `bounds`."""
    ends = [value for _, value in bounds]
    for result in results:
        ends += getattr(reduce(getattr, inside, result), f"{figure}_ci")
    return Axis.over(ends)


def turns(conversation: Conversation) -> list[tuple[str, str, str]]:
    """(prompt, response a, response b) of each turn, long ones cut; one side may have stopped before the other."""
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
