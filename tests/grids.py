"""Tests of many alike cases: `make test` runs some of them, `make test-long` the others."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def grid(cases: Iterable[Any], short: Collection[Any]) -> list[Any]:
    """The cases for `parametrize`; those that are not `short` are marked `long`."""
    return [case if case in short else pytest.param(*parts(case), marks=pytest.mark.long) for case in cases]


def parts(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
