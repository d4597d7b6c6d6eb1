"""What a user can mend, told apart from what only we can."""


class UserError(ValueError):
    """Something that the user can mend. The message names the file, row or key, its value and what to do.

    Raised where the cause is known, and shown by the entry points without a traceback (exit code 2). Any other
    `ValueError`, a library's above all, is a defect of ours and keeps its traceback.
    """


class OtherRankError(UserError):
    """Another rank of the same training found it and tells it: here it is not shown again."""
