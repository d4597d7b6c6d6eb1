"""What a command imports once it runs, read from the source: through each function, class and module that it names.

No data flow: a name stands for whatever the module binds to it, a class for all of its methods. What `find_spec` asks
for by name is optional to the function that asks. Annotations and `if TYPE_CHECKING` import nothing.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "teachers", "students", "eval", "deploy", "distill", "hydra_plugins", "bench")
# What libraries import for those who use these names of theirs.
BY_NAME = {
    "BitsAndBytesConfig": ("bitsandbytes", "accelerate"),
    "gguf_file": ("gguf", "accelerate"),
    "SummaryWriter": ("tensorboard",),
}

Place = tuple[str, str | None]  # a module, and a function or class in it; None: what importing it runs


@dataclass
class Body:
    """Names and attributes that a piece of source uses, what it binds by importing, what it imports from others."""

    used: set[tuple[str, str | None]] = field(default_factory=set)  # name, and the attribute of it
    bound: dict[str, Place] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)  # of ours
    packages: set[str] = field(default_factory=set)  # of others, but for the standard library


@cache
def source_of(module: str) -> Path | None:
    """The file of a module of ours."""
    path = ROOT.joinpath(*module.split("."))
    found = (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file())
    return next(found, None) if module.split(".")[0] in PACKAGES else None


@cache
def bodies(module: str) -> dict[str | None, Body]:
    """The pieces of a module by name: its functions and classes, and at None what importing it runs."""
    source = source_of(module)
    assert source is not None, module
    pieces: dict[str | None, Body] = {None: Body()}
    for statement in ast.parse(source.read_text()).body:
        named = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        piece = pieces.setdefault(statement.name if named else None, Body())
        for node in running(statement):
            read(node, piece)
        piece.packages -= {
            str(node.args[0].value)
            for node in ast.walk(statement)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "find_spec"
            and isinstance(node.args[0], ast.Constant)
        }
    return pieces


def running(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it that can run."""
    yield node
    for name, value in ast.iter_fields(node):
        checked_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if name in ("annotation", "returns") or (checked_only and name == "body"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from running(child)


def read(node: ast.AST, piece: Body) -> None:
    """Enter one node, not what is below it."""
    if isinstance(node, ast.Name):
        piece.used.add((node.id, None))
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        piece.used.add((node.value.id, node.attr))
    elif isinstance(node, ast.keyword) and node.arg in BY_NAME:
        piece.packages |= {*BY_NAME[node.arg]}
    elif isinstance(node, ast.Import):
        for alias in node.names:
            imported(alias.name, piece)
    elif isinstance(node, ast.ImportFrom):
        assert node.module and not node.level, "imports are absolute here"
        imported(node.module, piece)
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            if source_of(whole):
                imported(whole, piece)
            piece.bound[alias.asname or alias.name] = (whole, None) if source_of(whole) else (node.module, alias.name)
            piece.packages |= {*BY_NAME.get(alias.name, ())}


def imported(module: str, piece: Body) -> None:
    package = module.split(".")[0]
    if package in PACKAGES:
        piece.modules |= {module} if source_of(module) else set()
    elif package not in sys.stdlib_module_names:
        piece.packages.add(package)


def demands(command: str) -> dict[str, Place]:
    """The packages of others that a command, all of its module, imports once it runs, each with one place that does."""
    seen: set[Place] = set()
    todo, found = [(command, name) for name in bodies(command)], dict[str, Place]()
    while todo:
        place = module, name = todo.pop()
        if place in seen or source_of(module) is None:
            continue
        seen.add(place)
        pieces = bodies(module)
        todo.append((module, None))
        piece = pieces.get(name)
        if piece is None:  # a constant, or a name that the module imports itself
            todo += [pieces[None].bound[name]] if name in pieces[None].bound else []
            continue
        found |= {package: place for package in piece.packages if package not in found}
        todo += [(other, None) for other in piece.modules]
        bound = pieces[None].bound | piece.bound
        for used, attribute in piece.used:
            if used in bound:
                target = bound[used]
                todo.append((target[0], attribute) if target[1] is None and attribute else target)
            elif used in pieces:
                todo.append((module, used))
    return found
