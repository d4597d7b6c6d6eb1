"""What an evaluation prints: a table of the judges, and lines on what was scored and what is wrong."""

import math

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from eval.evaluation import Evaluation
from eval.means import METHODS
from eval.report.ladder import ordered, unconvincing
from eval.truth import TRUTHS


def table(evaluation: Evaluation) -> Table:
    """The judges in order, a red mark at those that do not beat `surface`."""
    result = Table(
        box=SIMPLE_HEAD,
        padding=0,
        caption=f"log loss in nats with its 95% interval ({METHODS[evaluation.intervals]}); "
        "flips: the verdict changes with the order shown",
    )
    result.add_column("judge", no_wrap=True)
    for heading in ("log loss", "95% interval", "accuracy", "ECE", "flips", "held out"):
        result.add_column(heading, justify="right", no_wrap=True)
    marked = unconvincing(evaluation.judges)
    for judge in ordered(evaluation.judges):
        of = evaluation.judges[judge]
        if judge == "bayes":
            result.add_section()
        result.add_row(
            Text.assemble(judge, (" ✗", "bold red") if judge in marked else ""),
            f"{of.log_loss:.4f}",
            "{:.4f}–{:.4f}".format(*of.log_loss_ci),
            *(f"{share:.1%}" for share in (of.accuracy, of.ece, of.flip_rate)),
            held_out(of.taught),
            style="bold" if judge == "student" else None,
        )
    return result


def lines(evaluation: Evaluation) -> list[str | Text]:
    """What is told below the table."""
    every: tuple[str | Text | None, ...] = (
        rows_line(evaluation),
        labels_line(evaluation),
        gain_line(evaluation),
        surface_line(evaluation),
        bayes_line(evaluation),
        sets_line(evaluation),
        checks_line(evaluation),
    )
    return [line for line in every if line is not None]


def rows_line(evaluation: Evaluation) -> str:
    """Which rows were scored, and which judges do not hold them out."""
    rows = evaluation.rows
    where = "the locked test split" if evaluation.split == "test" else "the fold that the student holds out"
    sentences = [f"Scored: {rows:,} conversations of {where}."]
    if evaluation.truth == "teacher":
        sentences.append(
            "The teacher's probabilities stand for votes: log loss is the cross-entropy with them, and the teacher's "
            "own is their entropy."
        )
    for judge in ordered(evaluation.judges):
        of = evaluation.judges[judge]
        sentences += provenance(judge, of.taught, of.alike, rows, TRUTHS[evaluation.truth].rows)
    return "\n".join(sentences)


def labels_line(evaluation: Evaluation) -> str | None:
    """What two labels mean, None where people could vote for a tie."""
    count = len(evaluation.labels)
    if count > 2:
        return None
    return f"Two labels: nobody could vote for a tie; a uniform guess has a log loss of {math.log(count):.4f}."


def held_out(taught: int | None) -> str:
    """Whether a judge's teachers saw none of the scored rows, as a table says it."""
    return {0: "yes", None: "not known"}.get(taught, "no")


def provenance(judge: str, taught: int | None, alike: int | None, rows: int, of: str = "votes") -> list[str]:
    """What a judge's teachers know of the scored rows, and how many of these it cannot tell apart by order."""
    sentences = []
    if taught:
        sentences.append(f"{judge}: cross-validated, its teachers saw {taught:,} of {rows:,} of these {of}.")
    elif taught is None:
        sentences.append(f"{judge}: nobody can tell what it learned from.")
    if alike:
        sentences.append(f"{judge}: {alike:,} of them look the same in both orders, equal or cut where they differ.")
    return sentences


def gain_line(evaluation: Evaluation) -> str | None:
    """What its teacher is worth to the student, None without a student of the votes alone."""
    if evaluation.gain is None:
        return None
    low, high = evaluation.gain.ci
    return (
        f"The teacher is worth {evaluation.gain.difference:.4f} nats to the student ({low:.4f} to {high:.4f}, paired)."
    )


def surface_line(evaluation: Evaluation) -> Text | None:
    """Which judges do not beat the surface baseline, None where all do."""
    marked = unconvincing(evaluation.judges)
    if not marked:
        return None
    return Text(f"✗ no better than length and layout alone: {', '.join(marked)}", "red")


def bayes_line(evaluation: Evaluation) -> str | None:
    """What no judge can beat, None where that is not known."""
    if evaluation.bayes is None:
        return None
    return (
        f"No judge can expect less than {evaluation.bayes:.4f} on these {evaluation.rows} conversations "
        "(the entropy of the simulated true distribution)."
    )


def sets_line(evaluation: Evaluation) -> str | None:
    """How often prediction sets hold the vote, or what stands for it, None where no export has thresholds."""
    told = [
        f"{judge}: sets hold {sets.coverage:.1%} of {TRUTHS[evaluation.truth].it} ({sets.asked:.0%} asked), "
        f"{sets.size:.2f} labels on average."
        for judge in ordered(evaluation.judges)
        if (sets := evaluation.judges[judge].sets)
    ]
    return "\n".join(told) or None


def checks_line(evaluation: Evaluation) -> Text | None:
    """Which exports failed their checks or gave no answer, and why; None where none did."""
    failed = {judge: of.failed for judge, of in evaluation.judges.items() if of.failed}
    lines = [f"✗ {judge} failed its checks: {'; '.join(reasons)}" for judge, reasons in failed.items()]
    lines += [f"✗ {judge} gave no answer: {reason}" for judge, reason in evaluation.unanswered.items()]
    return Text("\n".join(lines), "red") if lines else None
