"""A path is the name of one file, and a damaged file is named."""

from pathlib import Path

import polars as pl
import pytest

from core import tables
from core.errors import UserError

NAMES = ["exp[1]", "exp*", "exp?", "exp{1,2}", "~exp", "e x p", "exp%31"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, value in (("exp1", 1), ("exp2", 1), (name, 2)):
        Path(folder).mkdir()
        pl.DataFrame({"x": [value]}).write_parquet(tmp_path / folder / "t.parquet")
        pl.DataFrame({"x": [value]}).write_csv(tmp_path / folder / "t.csv")
    for path in (Path(name, "t.parquet"), tmp_path / name / "t.parquet"):
        assert tables.read_parquet(path)["x"].to_list() == [2]
        assert tables.scan_parquet(path).collect()["x"].to_list() == [2]
        assert tables.parquet_columns(path) == ["x"]
    assert tables.read_csv(Path(name, "t.csv"))["x"].to_list() == [2]


def test_damage_and_absence_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1, but nothing of it")
    (tmp_path / "bad.csv").write_bytes(b'x\n"\xff\n1,2,3\n')
    for read, name in ((tables.read_parquet, "bad.parquet"), (tables.read_csv, "bad.csv")):
        with pytest.raises(UserError, match=f"{tmp_path / name} cannot be read: "):
            read(tmp_path / name)
        with pytest.raises(UserError, match=f"{tmp_path / 'none'} is missing"):
            read(tmp_path / "none")
