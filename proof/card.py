"""The model card of a judge that is shipped: all its figures come from manifests and from an evaluation's files."""

from pathlib import Path

from core.artefacts.manifest import Manifest, read_manifest
from core.errors import UserError
from eval.comparison import Gains, JudgeFigures
from eval.evaluation import METRICS, Evaluation, JudgeResult
from eval.intervals import Interval
from eval.judges.candidates import BASELINES, STUDENT
from eval.results import SEEDS, read_result
from eval.seeds import SeedSummary
from proof.shippable import Origins
from students.trained import TrainedJudge

CARD = "README.md"


def card(folder: Path, judge: TrainedJudge, export: Manifest, origins: Origins, evaluation: Path) -> str:
    """The card, in Markdown, of a judge that is packed into `folder`.

    Raises `UserError` where the `evaluation` did not judge by this export, on votes of the test split.
    """
    place = folder.as_posix() if not folder.is_absolute() else folder.name
    name, found = evaluated(export, evaluation)
    sections = (
        f"# {folder.name}: a small judge of preferences\n\n{about(judge)}",
        "Written by `python -m proof.ship` from the manifests in this folder and the evaluation of the judge.",
        f"## Use\n\n{use(place)}",
        f"## What it is made of\n\n{made_of(judge, origins)}",
        f"## How good it is\n\n{figures(name, found, evaluation)}",
        f"## Limits\n\n{limits(judge, found.judges[name])}",
        f"## Where it comes from\n\n{lineage(judge, export)}",
    )
    return "\n\n".join(sections) + "\n"


def about(judge: TrainedJudge) -> str:
    lora = judge.manifest.config["model"]["lora"]
    reads = (
        "reads each response by itself and gives it a reward; two rewards become"
        if judge.renderer.pointwise
        else "reads both responses, in either order, and gives"
    )
    return (
        "Which of two responses to a prompt would people prefer? It "
        f"{reads} P(a wins), P(b wins) and P(tie). It is an adapter (LoRA of rank {lora['rank']}) on a base that is "
        f"not in this folder. It reads at most {judge.max_tokens} tokens at a time: of longer texts it leaves the "
        "middle out."
    )


def use(place: str) -> str:
    return (
        "```bash\n"
        f"python -m distill.serve serve.model={place} scorer@scorers.exported=transformers  # a page and an HTTP API\n"
        f"python -m distill.predict predict.model={place} scorer@scorers.exported=transformers "
        "input=pairs.csv output=verdicts.csv\n"
        "```\n\n"
        "`make try` runs the first of them for judges/human. The first use merges base and adapter below "
        "`artifacts/models`. Each use first checks the canaries: whether this machine computes what was exported."
    )


def made_of(judge: TrainedJudge, origins: Origins) -> str:
    base, rows = origins.base, judge.manifest.rows
    learned = sum(part.learned for part in origins.parts)
    held = sum(part.held for part in origins.parts)
    table = [
        "| | from | licence | learned from | canaries |",
        "|---|---|---|---|---|",
        f"| {base.about} | {base.url} | {base.licence} | | |",
        *(
            f"| `{source.name}`: {source.about} | {source.url}, commit {source.commit[:12]} | {source.licence} "
            f"| {part.learned:,} | {part.held} |"
            for part in sorted(origins.parts, key=lambda part: part.source.name)
            if (source := part.source)
        ),
    ]
    return (
        f"It learned from {learned:,} conversations, each with the votes of people ({rows['training']:,} trained it, "
        f"{rows['validation']:,} chose its checkpoint). `export/canaries.parquet` holds the texts of {held} of them, "
        "unchanged but for the side on which a response stands. The adapter is under this repository's licence; the "
        "licences and attributions below hold for the rest.\n\n" + "\n".join(table)
    )


def evaluated(export: Manifest, evaluation: Path) -> tuple[str, Evaluation]:
    """The export's name among the judges of an evaluation, and what that found."""
    manifest = read_manifest(evaluation, "eval", "make eval")
    found = read_result(Evaluation, evaluation / METRICS)
    names = {content: f"{STUDENT}_{Path(folder).name}" for folder, content in manifest.parents.items()}
    name = names.get(export.content, "")
    whole = (found.split, found.truth) == ("test", "votes") and manifest.config.get("limit") is None
    if name not in found.judges or not whole:
        raise UserError(f"{evaluation} does not tell how good this judge is on all votes of the test split: make eval")
    return name, found


def figures(name: str, found: Evaluation, evaluation: Path) -> str:
    rows = [*(rival for rival in BASELINES if rival in found.judges), name]
    named = {name: "**this judge**", "prior": "the shares of the labels", "surface": "length and layout alone"}
    lines = [
        f"On {found.rows:,} conversations of {found.groups:,} groups of prompts that it did not learn from, the locked "
        "test split. Log loss is in nats; intervals are 95%, over groups; flips: the verdict changes with the order.",
        "",
        "| judge | log loss | accuracy | ECE | flips |",
        "|---|---|---|---|---|",
        *(row(named.get(rival, rival), found.judges[rival]) for rival in rows),
        "",
        *gains(found.differences.get("surface", {}).get(name)),
        *over_seeds(evaluation / SEEDS),
    ]
    return "\n".join(lines).rstrip()


def row(name: str, of: JudgeFigures) -> str:
    cells = (
        f"{of.log_loss:.4f} ({between(of.log_loss_ci, '.4f')})",
        f"{of.accuracy:.1%} ({between(of.accuracy_ci, '.1%')})",
        *(f"{value:.1%}" for value in (of.ece, of.flip_rate)),
    )
    return f"| {name} | {' | '.join(cells)} |"


def gains(over_surface: Gains | None) -> list[str]:
    if over_surface is None:
        return []
    gain = over_surface.log_loss
    said = (
        "It is better than length and layout alone" if gain.beats else "It is not better than length and layout alone"
    )
    return [f"{said}: by {gain.difference:+.4f} nats ({between(gain.ci, '+.4f')})."]


def over_seeds(path: Path) -> list[str]:
    if not path.exists():
        return ["One training seed; others were not compared."]
    summary = read_result(SeedSummary, path)
    of = summary.judges[STUDENT]
    each = ", ".join(f"{loss:.4f}" for loss in of.log_loss_by_seed)
    return [
        f"Trained from {len(summary.seeds)} seeds its log loss was {each}: {of.log_loss:.4f} in the mean "
        f"({between(of.log_loss_ci, '.4f')}, over rows and seeds)."
    ]


def between(interval: Interval, digits: str) -> str:
    low, high = interval
    return f"{low:{digits}} to {high:{digits}}"


def limits(judge: TrainedJudge, of: JudgeResult) -> str:
    length = of.biases.get("verbosity")
    return "\n".join(
        (
            "- It is small: it knows few facts, so it takes a fluent wrong answer for a right one.",
            f"- {judge.max_tokens} tokens at a time: of what lies beyond it knows at most how many words there are.",
            "- Nearly all of its data are English, and most are single turns.",
            "- People's votes favour longer responses, and so does it."
            + (f" {length.sentence}" if length is not None and length.value is not None else ""),
            "- It learned from responses of models of 2023 and before; of newer ones it saw none.",
            "- Validate it on votes of your own before it ranks products, people or their work.",
        )
    )


def lineage(judge: TrainedJudge, export: Manifest) -> str:
    of = judge.manifest
    return "\n".join(
        (
            f"- Data: {', '.join(f'`{name}` ({content[:12]})' for name, content in of.parents.items())}",
            f"- Trained: `python {of.command}`, seed {of.config['seed']}, fold {of.config['fold']} out, {of.created}",
            f"- Exported: `python {export.command}`, {export.created}",
            f"- Content: {of.content[:12]} (run), {export.content[:12]} (export)",
            f"- Versions: {', '.join(f'{name} {version}' for name, version in of.versions.items())}",
        )
    )
