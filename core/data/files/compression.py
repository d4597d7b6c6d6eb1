"""Files compressed by gzip or zstd, unpacked while they are read. Their first bytes tell, whatever their names say."""

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

HEAD = 4096
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
SUFFIXES = {".gz": "gzip", ".zst": "zstd"}


def compression_of(path: Path) -> str | None:
    """gzip or zstd; None where the file is not compressed by either."""
    with path.open("rb") as file:
        head = file.read(max(map(len, MAGIC)))
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def open_unpacked(path: Path) -> BinaryIO:
    """The bytes that the file holds once it is unpacked. Whoever reads a damaged one gets an `OSError`."""
    compression = compression_of(path)
    if compression is None:
        return path.open("rb")
    import pyarrow as pa

    return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression=compression)))


def beginning(path: Path) -> bytes:
    """The first bytes that the file holds once it is unpacked. Raises `OSError`."""
    with open_unpacked(path) as file:
        return file.read(HEAD)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or an unpacked copy of a compressed one, for who has to look at its end first."""
    if compression_of(path) is None:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=path.with_suffix("").suffix) as copy:
        with open_unpacked(path) as file:
            shutil.copyfileobj(file, copy, 1 << 20)
        copy.flush()
        yield Path(copy.name)


def without_compression(name: str) -> str:
    """A file's name as it will be once it is unpacked: `train.csv` for `train.csv.gz`."""
    return name.removesuffix(next((suffix for suffix in SUFFIXES if name.endswith(suffix)), ""))
