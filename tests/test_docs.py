"""What the documentation names exists: make targets, modules, experiments, links, and every file of the tour; its
commands compose, in whatever environment they run.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.composing import configured
from tests.test_architecture import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/kaggle/*.md"), *ROOT.glob("judges/*/*.md")]
)
STAGES = ("distill.", "eval", "distill.kaggle")
NOT_COMPOSED = ("distill.store",)  # a command line of its own
OTHERS = ("pytest", "pip")
LONG = "pytest.mark.long"
GPU_PAGE = ROOT / "docs" / "gpu.md"


class Command(NamedTuple):
    """A command line of ours: the folder of its environment ("" where none is named), its module, its overrides."""

    environment: str
    module: str
    overrides: tuple[str, ...]


def commands(page: Path) -> Iterator[Command]:
    """Those of a page's blocks that start a stage, by `python -m` or through DeepSpeed's launcher."""
    for block in re.findall(r"^ *```bash\n(.*?)```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if re.search(r"python[\d.]* -m |deepspeed ", line):
                yield from filter(None, map(read, split(line)))


def split(line: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell's line."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    command: list[str] = []
    for word in words:
        if set(word) <= set(";&|()<>"):
            yield command
            command = []
        else:
            command.append(word)
    yield command


def read(words: list[str]) -> Command | None:
    for place, (program, option) in enumerate(pairwise(words)):
        if re.search(r"(^|/)python[\d.]*$", program) and option == "-m":
            module, rest = words[place + 2], words[place + 3 :]
        elif re.search(r"(^|/)deepspeed$", program):
            module = next((word for word in words[place + 1 :] if word.startswith(STAGES)), "")
            rest = words[words.index(module) + 1 :] if module else []
        else:
            continue
        overrides = [word for word in rest if "=" in word]
        if "-m" in rest:  # the first of several values; those that a search draws from are Hydra's matter
            overrides = [re.sub(r"(?<==)([\w.]+)(,[\w.]+)+$", r"\1", word) for word in overrides if "(" not in word]
        return Command(program.split("/")[0] if "/" in program else "", module, tuple(overrides))
    return None


def test_lines_are_read_as_a_shell_would() -> None:
    loop = (
        "for k in 0 1; do .venv-a/bin/deepspeed --hostfile f --module distill.student 'a=[1,2]' fold=$k || break; done"
    )
    assert [c for c in map(read, split(loop)) if c] == [Command(".venv-a", "distill.student", ("a=[1,2]", "fold=$k"))]
    several = "python3.11 -m eval -m fold=0,1 'data.files=[a,b]'  # in=words"
    assert read(next(split(several))) == Command("", "eval", ("fold=0", "data.files=[a,b]"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_compose(page: Path) -> None:
    for command in dict.fromkeys(commands(page)):
        path = ROOT / command.module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists() or command.module in OTHERS, command
        if command.module.startswith(STAGES) and command.module not in NOT_COMPOSED:
            # Hydra itself reads what is said of its launchers and sweepers (tests/distill/test_sweeps.py).
            own = [o.replace("$k", "0") for o in command.overrides if not re.match(r"\+?(hydra|sweep)\b", o)]
            configured(*own)


def test_every_line_for_gpus_names_an_environment_that_is_for_it() -> None:
    rows = re.findall(r"^\| (`\.venv-\w+`|any of them) \| (.+) \|$", GPU_PAGE.read_text(), re.MULTILINE)
    homes = {name.strip("`"): set(re.findall(r"`([\w.]+)`", cell)) for name, cell in rows}
    anywhere = homes.pop("any of them")
    made = re.findall(r"make setup REQUIREMENTS=(\S+) VENV=(\S+)", GPU_PAGE.read_text())
    assert {venv for _, venv in made} == homes.keys() and all((ROOT / path).exists() for path, _ in made)
    found = list(commands(GPU_PAGE))
    assert {command.module for command in found} >= {"distill.student", "distill.teacher", "distill.export", "eval"}
    for command in found:
        assert command.environment in homes, command
        assert command.module in homes[command.environment] | anywhere, command


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(block or span for block, span in re.findall(r"```bash\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", code)) <= targets
    for experiment in re.findall(r"\+exp=([a-z0-9_]+)", code):
        assert (ROOT / "conf" / "exp" / f"{experiment}.yaml").exists(), experiment
    for module in re.findall(r"python -m ([a-z_.]+)", code):  # within sentences, too
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists() or module in ("pytest", "pip"), (
            module
        )
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link


def test_the_tour_names_every_folder_and_files_that_are_there() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text()
    for package in PACKAGES:
        for path in (ROOT / package, *(ROOT / package).iterdir()):
            code = path.is_dir() and (path / "__init__.py").exists()
            assert not code or f"{path.name}/" in tour, path
    for named in re.findall(r"`([\w/]+/[\w.]*)`", tour):
        assert (ROOT / named).exists() or "NAME" in named, named


def test_the_documentation_speaks_of_this_project_alone() -> None:
    for page in PAGES:
        assert not re.search(r"/(tmp|work|root|home)/\w", page.read_text()), page


def test_every_promise_of_the_readme_names_tests_some_of_which_make_test_runs() -> None:
    readme = (ROOT / "README.md").read_text().split("## What you can rely on")[1].split("##")[0]
    promised = re.findall(r"^- \*\*(.+?)\*\*", readme, re.MULTILINE)
    sections = re.split(r"^## ", (ROOT / "docs" / "promises.md").read_text(), flags=re.MULTILINE)[1:]
    assert promised and [section.splitlines()[0] for section in sections] == promised
    for section in sections:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", section)
        for path, test in named:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"
        assert any(test in short_tests(ROOT / path) for path, test in named), section


def short_tests(path: Path) -> set[str]:
    """The tests of a file of which `make test` runs all cases or some."""
    found, todo = set[str](), list[ast.AST](ast.parse(path.read_text()).body)
    if any(LONG in ast.unparse(node) for node in todo if ast.unparse(node).startswith("pytestmark")):
        return found
    for node in todo:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and LONG not in map(ast.unparse, node.decorator_list):
            found.add(node.name)
            todo += node.body if isinstance(node, ast.ClassDef) else []
    return found
