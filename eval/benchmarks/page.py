"""A benchmark's `report.html`: one file in which every number names its place in metrics.json."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from eval.benchmarks.results import BenchmarkResult, sections_of
from eval.evaluation import METRICS
from eval.report.ladder import LADDER
from eval.report.lineage import trace
from eval.report.page import templates
from eval.report.sources import Sources


def write_benchmark_page(
    path: Path, name: str, result: BenchmarkResult, artefacts: Mapping[str, Path], root: Path
) -> None:
    """Write the page of a run's benchmark. `artefacts` are the judges' folders, below `root` most of them."""
    lineage = trace(artefacts, path.parent, root)
    files = {METRICS: asdict(result)}
    files |= {f"{place}/manifest.json": asdict(of) for place, of in lineage.manifests.items()}
    sources = Sources(files)
    page = (
        templates(Path(__file__).parent)
        .get_template("benchmark.html.j2")
        .render(
            name=name,
            result=result,
            sections=sections_of(result),
            subsets=sorted({subset for of in result.judges.values() for subset in of.subsets}),
            lineage=lineage,
            ladder=LADDER,
            show=sources.show,
        )
    )
    path.write_text(page, encoding="utf-8")
