"""What the documentation names exists: make targets, modules, experiments, links, and every file of the tour."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(block or span for block, span in re.findall(r"```bash\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", code)) <= targets
    for experiment in re.findall(r"\+exp=([a-z0-9_]+)", code):
        assert (ROOT / "conf" / "exp" / f"{experiment}.yaml").exists(), experiment
    for module in re.findall(r"python -m ([a-z_.]+)", code):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists() or module == "pytest", module
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link


def test_the_tour_names_every_source_file() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text()
    for package in ("distill", "teachers", "students", "eval"):
        for path in (ROOT / package).rglob("*.py"):
            assert path.name in tour or path.name == "__init__.py", path


def test_the_documentation_speaks_of_this_project_alone() -> None:
    for page in PAGES:
        assert not re.search(r"/(tmp|work|root|home)/\w", page.read_text()), page


def test_every_promise_of_the_readme_names_tests_that_exist() -> None:
    readme = (ROOT / "README.md").read_text().split("## What you can rely on")[1].split("##")[0]
    promised = re.findall(r"^- \*\*(.+?)\*\*", readme, re.MULTILINE)
    sections = re.split(r"^## ", (ROOT / "docs" / "promises.md").read_text(), flags=re.MULTILINE)[1:]
    assert promised and [section.splitlines()[0] for section in sections] == promised
    for section in sections:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", section)
        assert named, section
        for path, test in named:
            assert re.search(rf"^ *def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{test}"
