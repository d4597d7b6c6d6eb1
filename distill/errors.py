"""What a user can mend, told apart from what only we can."""

import errno
import os
import re

OF_RUST = re.compile(r"\(os error (\d+)\)")  # how polars, safetensors and tokenizers tell of the file system
OF_TORCH = re.compile(r"inline_container\.cc.*(unexpected pos|file write failed)", re.DOTALL)
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "give this user the right to it, or name another place"),
    errno.ENAMETOOLONG: "choose shorter names",
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "move away what is there, or name another place"),
    errno.EISDIR: "name a file",
    errno.ELOOP: "mend the links",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    **dict.fromkeys((errno.EIO, errno.ESTALE), "see to the disk"),
}


class UserError(ValueError):
    """Something that the user can mend. The message names the file, row or key, its value and what to do.

    Raised where the cause is known, and shown by the entry points without a traceback (exit code 2). Any other
    `ValueError`, a library's above all, is a defect of ours and keeps its traceback.
    """


def of_file_system(error: BaseException) -> str | None:
    """What a user is told of an error for which a disk or its permissions are the cause; None for any other error.

    A file that is merely missing is none of them: we should have known.
    """
    if isinstance(error, OSError) and error.errno:
        code = error.errno
    elif match := OF_RUST.search(str(error)):
        code = int(match[1])
    elif isinstance(error, RuntimeError) and OF_TORCH.search(str(error)):
        return "a checkpoint could not be written: free space, and run the same command again"
    else:
        return None
    if code not in REMEDIES:
        return None
    named = error.filename if isinstance(error, OSError) and error.filename is not None else None
    where = os.fsdecode(named) if isinstance(named, str | bytes) else str(error) if named is None else str(named)
    return f"{where}: {os.strerror(code)}: {REMEDIES[code]}, and run the same command again"
