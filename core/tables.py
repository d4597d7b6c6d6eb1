"""Reading tables: a path is the name of one file, never a pattern, and a damaged file is named.

polars takes `[1]`, `*` and `?` in a path for a glob, and so would read the files of another run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError


def read_parquet(path: Path, **options: Any) -> pl.DataFrame:
    """The parquet file at `path`. Raises `UserError` where it is not there or damaged."""
    with named(path):
        return pl.read_parquet(path.absolute(), glob=False, **options)


def scan_parquet(path: Path) -> pl.LazyFrame:
    """The parquet file at `path`, to be read in pieces; whoever collects it meets the damage."""
    return pl.scan_parquet(path.absolute(), glob=False)


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns of the parquet file at `path`. Raises as polars does."""
    return scan_parquet(path).collect_schema().names()


def parquet_metadata(path: Path) -> dict[str, str]:
    """What its writer noted in the parquet file at `path`. Raises `UserError` where it is not there or damaged."""
    with named(path), path.open("rb") as file:
        return pl.read_parquet_metadata(file)


def read_csv(path: Path, **options: Any) -> pl.DataFrame:
    """The CSV file at `path`. Raises `UserError` where it is not there or damaged."""
    with named(path):
        return pl.read_csv(path.absolute(), glob=False, **options)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn what polars says of the file at `path` into a `UserError` that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: restore it, or make it again with overwrite=true") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read: {error}; restore it, or make it again with overwrite=true") from error
