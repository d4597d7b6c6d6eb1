"""What a file that cannot be read seems to be, told from its first bytes, and what to do about it."""

from pathlib import Path

HEAD = 4096
BEGINNINGS = {
    b"PAR1": ("parquet", "name it .parquet"),
    b"\x1f\x8b": ("compressed by gzip", "unpack it"),
    b"PK\x03\x04": ("a zip archive or an Excel sheet", "unpack it, or save the sheet as CSV in UTF-8"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it"),
    b"BZh": ("compressed by bzip2", "unpack it"),
    b"\xfd7zXZ": ("compressed by xz", "unpack it"),
    b"ARROW1": ("an Arrow file", "save it as parquet"),
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
    b"version https://git-lfs": ("a Git LFS pointer, not the data", "fetch them with git lfs pull"),
    b"<": ("a web page", "download the file itself"),
}
SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'"}


def seems(path: Path, known: set[str]) -> str | None:
    """What `path` seems to be other than its suffix says, and the remedy, as in `seems to be UTF-16: save it as UTF-8`.

    `known` are the columns that a table may have, by which other separators than commas are told. None: no idea.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if path.suffix == ".parquet" and head.startswith(b"PAR1"):
        return None
    for beginning, (kind, remedy) in BEGINNINGS.items():
        if head.startswith(beginning):
            return f"seems to be {kind}: {remedy}"
    if path.suffix == ".parquet":
        return None
    if b"\0" in head:
        return "seems to be UTF-16 or no text at all: save it as UTF-8"
    if path.suffix == ".csv":
        header = head.split(b"\n")[0].decode("utf-8-sig", errors="replace")
        if header.lstrip().startswith(("{", "[")):
            return "seems to be JSON: name it .jsonl, with an object in each line"
        for separator, name in SEPARATORS.items():
            if len(known & {cell.strip(" \r\"'") for cell in header.split(separator)}) > 1:
                return f"seems to be separated by {name}: save it with commas"
    return None
