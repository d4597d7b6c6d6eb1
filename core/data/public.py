"""Where the public sets of votes lie, on which results are measured; `python -m proof.sources` makes their files."""

import os
from pathlib import Path

VARIABLE, PLACE = "PUBLIC_DATA", "../shared/data"  # as in `conf/data/human.yaml`


def public_folder() -> Path:
    """The folder with a folder for each set; a relative one counts from the repository's root."""
    return Path(os.environ.get(VARIABLE, PLACE))
