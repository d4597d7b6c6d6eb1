"""What a check says of an exported model, rule by rule."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from core.json_files import read_json, write_json

T4_CHECK = "t4.json"
ANSWERS = {True: "ok", False: "NO", None: "?"}


@dataclass(frozen=True)
class Finding:
    """Whether a rule holds, None where that cannot be determined here; `detail` says what to do where it does not."""

    rule: str
    ok: bool | None
    detail: str


def broken_rules(findings: Iterable[Finding]) -> list[str]:
    """The rules that do not hold, in words."""
    return [f"T4: {finding.rule}: {finding.detail}" for finding in findings if finding.ok is False]


def findings_table(model: Path, findings: Iterable[Finding]) -> Table:
    """All rules, for the terminal."""
    table = Table(title=f"On a T4: {model}", title_justify="left", show_header=False)
    for finding in findings:
        table.add_row(ANSWERS[finding.ok], finding.rule, finding.detail)
    return table


def write_findings(folder: Path, findings: Iterable[Finding]) -> None:
    """Write `folder`/t4.json."""
    write_json(folder / T4_CHECK, [asdict(finding) for finding in findings])


def read_findings(folder: Path) -> Sequence[Finding]:
    """What `folder`/t4.json holds; nothing where there is no such file, as beside a model that no export wrote."""
    path = folder / T4_CHECK
    if not path.exists():
        return []
    return [Finding(**finding) for finding in read_json(path, "export it again with overwrite=true")]
