"""`--help` lists the keys that a command reads, and a misspelt one is told with the one that was meant."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.help import key_line, key_lines
from core.suggestions import meant_keys, of_override
from distill.config import Config
from tests.running import ROOT, refuses
from tests.test_architecture import HEAVY

# distill.status takes every key that a stage takes; distill.store has no configuration.
COMMANDS = ["distill." + n for n in ("prepare", "teacher", "student", "sweeps", "export", "predict", "serve", "kaggle")]
MODULES = [*COMMANDS, "distill.plan.__main__", "eval.__main__"]
PROPERTIES = {"root": ["paths.root"], "run": ["name"], "export_folder": ["name", "export", "paths"]}
WHOLE = {"to_mapping", "replace", "typed"}  # what is recorded, or passed on


def tree_of(module: str) -> ast.Module:
    return ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text())


def imports_of(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Name -> (module, its name there) of what a module imports from our own entry points' floor and eval."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("distill")
        for alias in node.names
    }


def chain(node: ast.AST) -> tuple[str, ...]:
    """`config.a.b` -> (config, a, b); () for anything else."""
    if isinstance(node, ast.Name):
        return (node.id,)
    found = chain(node.value) if isinstance(node, ast.Attribute) else ()
    return (*found, node.attr) if found and isinstance(node, ast.Attribute) else ()


class Reader:
    """Which keys functions read of the configuration that they are passed, and those that they pass it to."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.keys: set[str] = set()

    def follow(self, module: str, name: str) -> bool:
        """Whether there is such a function; what it reads is noted."""
        tree = tree_of(module)
        function = next((f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == name), None)
        if function is None:
            return name in imports_of(tree) and self.follow(*imports_of(tree)[name])
        if (module, name) not in self.seen:
            self.seen.add((module, name))
            self.read(module, tree, function)
        return True

    def read(self, module: str, tree: ast.Module, function: ast.FunctionDef) -> None:
        parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
        aliases = {
            a.arg: () for a in function.args.args if a.annotation and "Config" in ast.unparse(a.annotation).split()
        }
        assigned: dict[str, ast.AST] = {}
        for node in ast.walk(function):
            for name, value in pairs(node):
                assigned[name] = value
                place = chain(value)
                if isinstance(value, ast.Call) and chain(value.func) == ("replace",):
                    place = chain(value.args[0])
                if place and place[0] in aliases:
                    aliases[name] = (*aliases[place[0]], *place[1:])
        for node in ast.walk(function):
            if not isinstance(node, ast.Name) or node.id not in aliases or not isinstance(node.ctx, ast.Load):
                continue
            top: ast.AST = node
            while isinstance(parents.get(top), ast.Attribute):
                top = parents[top]
            key = (*aliases[node.id], *chain(top)[1:])
            if top in [value for other in ast.walk(function) for _, value in pairs(other)]:
                continue  # it gets another name, under which it is read
            if key:
                self.keys |= {*PROPERTIES.get(key[0], [".".join(key)])}
            else:
                self.passed(module, tree, parents, assigned, node)

    def passed(
        self,
        module: str,
        tree: ast.Module,
        parents: dict[ast.AST, ast.AST],
        assigned: dict[str, ast.AST],
        node: ast.AST,
    ) -> None:
        """Follow the whole configuration to the function that it is passed to."""
        call = parents[node]
        while isinstance(call, ast.Call) and chain(call.func) in {(name,) for name in WHOLE}:
            call = parents[call]
        if not isinstance(call, ast.Call):
            return
        (name,) = chain(call.func)
        names = [name]
        if name in assigned:
            names = [n.id for n in ast.walk(assigned[name]) if isinstance(n, ast.Name) and n.id not in ("config",)]
        followed = [self.follow(module, each) for each in names]
        assert any(followed), f"{module}: {name} gets the configuration, and nobody knows what it reads"


def pairs(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(name, value) of what an assignment assigns."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, part in zip(target.elts, value.elts, strict=True):
            yield from pairs(ast.Assign([one], part))


@pytest.mark.parametrize("module", MODULES)
def test_a_command_declares_the_keys_that_it_reads(module: str) -> None:
    reader = Reader()
    assert reader.follow(module, "main")
    declared = importlib.import_module(module).READS.split()
    found = {key: [d for d in declared if key == d or key.startswith(f"{d}.")] for key in reader.keys}
    assert {key for key, of in found.items() if not of} == set(), "read, but not declared"
    assert {*declared} - {d for of in found.values() for d in of} == set(), "declared, but not read"


def test_help_shows_an_experiment_s_values_within_the_width_and_imports_nothing_heavy() -> None:
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('heavy:', *({HEAVY!r} & set(sys.modules))))\n"
        "sys.argv[1:] = ['+exp=demo', 'optimizer.lr=0.5', '--help']\n"
        "runpy.run_module('distill.student', run_name='__main__', alter_sys=True)\n"
    )
    environment = os.environ | {"COLUMNS": "80"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[-1] == "heavy:" and lines[0].startswith("Train one judge on one fold") and done.stderr == ""
    assert max(map(len, lines)) <= 80
    for said in (
        "  train.epochs=2 ",
        "  optimizer.lr=0.5 ",
        "  seed=0 ",
        "loss=blackpearl | distill |",
        "  teacher.name=demo_teacher",
    ):
        assert any(said in line for line in lines), said
    assert "--hydra-help" in done.stdout and "  serve.port" not in done.stdout and "  plan.gpus" not in done.stdout
    assert "  train.epochs=2                  Passes over the training rows." in lines


def test_keys_are_shown_with_value_and_explanation() -> None:
    values = {"limit": None, "loss": {"kl": {"weight": 0.5}, "sources": {}}}
    texts = {"limit": "Rows.", "loss": "Terms.", "loss.kl.weight": "Its weight."}
    assert list(key_lines(values, texts, {"loss": ["kl", "votes"]}, ["loss", "limit"], 60)) == [
        f"{'  limit=null':<34}Rows.",
        "",
        "loss: Terms. loss=kl | votes",
        f"{'  loss.kl.weight=0.5':<34}Its weight.",
        "  loss.sources={}",
    ]
    long = list(key_line("model.base", "x" * 99, "word " * 9, 60))
    assert long[0] == f"  model.base={'x' * 57}..." and all(len(line) <= 60 for line in long[1:])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.epoch", ["train.epochs"]),
        ("lr", ["optimizer.lr"]),
        ("model.lr", ["optimizer.lr"]),
        ("trian.epochs", ["train.epochs"]),
        ("epoch", ["train.epochs"]),
        ("xyzzy", []),
    ],
)
def test_the_nearest_key_is_found(key: str, nearest: list[str]) -> None:
    known = ["train", "train.epochs", "train.schedule_epochs", "optimizer.lr", "optimizer.head_lr", "data.name"]
    assert meant_keys(key, known) == nearest


def test_hydra_s_words_on_overrides_become_one_sentence() -> None:
    choices = {"loss": ["distill", "kl"], "exp": ["demo", "human"]}

    def told(message: str, override: str) -> str | None:
        return of_override(message, [override], ["train.epochs", "optimizer.lr", "loss"], choices)

    missing = "In 'config': Could not find 'loss/distil'\n\nAvailable options in 'loss':"
    assert told(missing, "loss=distil") == "loss=distil: there is no conf/loss/distil.yaml; did you mean loss=distill?"
    assert told("Could not load 'exp/qqq'.", "+exp=qqq") == (
        "+exp=qqq: there is no conf/exp/qqq.yaml; choose from demo, human"
    )
    assert told("something else", "x=1") is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epoch=2", "error: train.epoch=2: there is no such key; did you mean train.epochs?"),
        ("lr=1e-4", "error: lr=1e-4: there is no such key; did you mean optimizer.lr?"),
        ("loss=distil", "did you mean loss=distill?"),
        ("+exp=dmeo", "did you mean +exp=demo?"),
        ("exp=demo", "error: exp=demo: it is no part of the defaults, write +exp=demo"),
        ("+train.epoch=3", "train.epoch=3: unknown key; did you mean train.epochs?"),
        ("+train.epochs=3", "error: +train.epochs=3: the key is there already, write it without the +"),
        ("train.epochs", "error: train.epochs: give its value, too: train.epochs=VALUE"),
        ("paths.root=/tmp/fold=0", """goes into quotes within quotes: 'paths.root="VALUE"'"""),
        ("data.files=[a", "error: data.files=[a: "),
    ],
)
def test_a_misspelt_override_is_told_with_what_was_meant(override: str, said: str) -> None:
    told = refuses("distill.sweeps", override)
    assert said in told and len(told.splitlines()) <= 2


def test_a_misspelt_key_of_an_experiment_s_file_is_told_with_what_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "exp" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("# @package _global_\nname: mine\nlr: 0.1\ntrain: {epoch: 3}\n")
    told = refuses("distill.sweeps", f"hydra.searchpath=[file://{tmp_path}]", "+exp=mine")
    assert "lr=0.1: unknown key; did you mean optimizer.lr?" in told
    assert "train.epoch=3: unknown key; did you mean train.epochs?" in told


def test_every_declared_key_is_one() -> None:
    from core.suggestions import keys

    known = {*keys(Config)}
    for module in [*MODULES, "distill.status.__main__"]:
        assert {*importlib.import_module(module).READS.split()} <= known
