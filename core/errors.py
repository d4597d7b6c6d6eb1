"""Errors that a user can fix, as opposed to defects of ours."""

import errno
import os
import re
import sys
from importlib.util import find_spec

OF_RUST = re.compile(r"\(os error (\d+)\)")  # how polars, safetensors and tokenizers tell of the file system
OF_TORCH = re.compile(r"inline_container\.cc.*(unexpected pos|file write failed)", re.DOTALL)
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "give this user permission"),
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "move what is there, or choose another path"),
    errno.EISDIR: "name a file",
    errno.ELOOP: "fix the links",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk"),
}


class UserError(ValueError):
    """Something that the user can fix. The message names the file, row or key, its value and what to do.

    Raised where the cause is known, and shown by the entry points without a traceback (exit code 2). Any other
    `ValueError`, a library's above all, is a defect of ours and keeps its traceback.
    """


class EngineDied(UserError):
    """An engine's process has ended. Another one may do better; why it ended is in what its library wrote."""


class OtherRankError(UserError):
    """Another rank of the same training found the error and reports it: this rank does not show it again."""


def of_file_system(error: BaseException) -> str | None:
    """What a user is told of an error for which a disk or its permissions are the cause; None for any other error.

    A file that is merely missing is not included: a missing file is our own bug.
    """
    path: object = None
    if isinstance(error, UserError):
        return None  # it says so already
    if isinstance(error, OSError) and error.errno:
        code, path = error.errno, error.filename
    elif match := OF_RUST.search(str(error)):
        code, path = int(match[1]), str(error)[match.end() :].removeprefix(": ")
    elif isinstance(error, RuntimeError) and OF_TORCH.search(str(error)):
        code = errno.ENOSPC  # it does not say why, and mostly that is it
    else:
        return None
    if code not in REMEDIES:
        return None
    where = f"{path}: " if path else ""
    return f"{where}{os.strerror(code)}: {REMEDIES[code]}, then rerun the same command"


def of_missing_package(error: BaseException) -> str | None:
    """The message for a third-party package that is not installed; None for any other error.

    On GPUs each stage has an environment of its own, and a scorer that can be chosen may be at home in another one.
    """
    package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not package or find_spec(package):  # a module that its package lacks is a bug, ours or of versions: a traceback
        return None
    return (
        f"{sys.prefix} holds no {package}, which this needs: run it in the environment of its stage (docs/gpu.md), "
        "choose another backend, or install the package"
    )
