"""What a file that cannot be read seems to be, told from its first bytes, and what to do about it."""

import re

BEGINNINGS = {
    rb"\x1f\x8b": ("compressed by gzip", "unpack it"),
    rb"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it"),
    rb"PK\x03\x04": ("a zip archive or an Excel sheet", "unpack it, or save the sheet as CSV in UTF-8"),
    rb"BZh": ("compressed by bzip2", "unpack it"),
    rb"\xfd7zXZ": ("compressed by xz", "unpack it"),
    rb"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    rb"ARROW1": ("an Arrow file", "save it as parquet"),
    rb"\xff\xfe|\xfe\xff": ("UTF-16", "save it as UTF-8"),
    rb"version https://git-lfs": ("a Git LFS pointer, not the data", "fetch them with git lfs pull"),
    rb"\s*<(?i:!doctype|html|head|\?xml)\b": ("a web page", "download the file itself"),
    rb"[^\n]*\0": ("UTF-16 or no text at all", "save it as UTF-8"),
}


def seems(head: bytes) -> str | None:
    """What a file with these first bytes seems to be, and the remedy, as in `seems to be UTF-16: save it as UTF-8`.

    None: no idea, or parquet.
    """
    if head.startswith(b"PAR1"):
        return None
    found = (what for beginning, what in BEGINNINGS.items() if re.match(beginning, head))
    kind, remedy = next(found, (None, None))
    return kind and f"seems to be {kind}: {remedy}"
