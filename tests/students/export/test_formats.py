"""The table of formats is whole: each row has what its readers look up elsewhere."""

from pathlib import Path
from typing import get_args

import pytest

from core.artefacts.building import Artefact
from core.errors import UserError
from core.exported import GGUF_BACKBONE, open_exported
from students.export.config import FormatName
from students.export.formats import FORMATS, format_in, format_named
from students.export.t4.checking import RULES
from tests.composing import configured


def test_the_configuration_knows_the_formats_of_the_table() -> None:
    assert get_args(FormatName) == tuple(FORMATS) and all(row.name == name for name, row in FORMATS.items())


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_has_a_runtime_whose_rules_a_t4_is_checked_by(name: str) -> None:
    assert FORMATS[name].runtimes[0] in RULES


def test_a_format_is_told_from_its_files(tmp_path: Path) -> None:
    assert format_in(tmp_path).runtimes == FORMATS["w8a8"].runtimes
    (tmp_path / GGUF_BACKBONE).touch()
    assert format_in(tmp_path) is FORMATS["gguf"]


def test_a_format_that_is_gone_is_refused_with_its_successor(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gptq: the format is gone; give w8a16, which has the same weights"):
        format_named("gptq")
    with pytest.raises(UserError, match="w2a2: give one of merged, w8a8"):
        format_named("w2a2")
    with pytest.raises(UserError, match=r"export.format='gptq': the format is gone; give w8a16"):
        configured("export.format=gptq")
    (tmp_path / "old").mkdir()
    Artefact(tmp_path / "old", "export", {"export": {"format": "gptq"}}, [], tmp_path).finish()
    with pytest.raises(UserError, match=r"old was written by an earlier version: the format is gone; give w8a16"):
        open_exported(tmp_path / "old")
