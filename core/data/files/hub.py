"""A data set of the Hugging Face hub, or a local folder, through `datasets`."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from core.data.columns import BALLOTS, MODELS, REQUIRED
from core.data.files.identity import content_hash
from core.data.files.rows import ROWS_AT_ONCE, Row, Source
from core.naming import inert


def open_hub(hub: str, problems: list[str]) -> Source | None:
    """The split `train` of the data set; None, and a line in `problems`, where it cannot be had.

    A folder of CSV files keeps its texts: `datasets` would take the ids 007 for the numbers 7.
    """
    import datasets

    path = Path(hub)
    try:
        with inert(path) if path.exists() else nullcontext(hub) as place:
            kind = datasets.load_dataset_builder(str(place)).name
            as_text = {"converters": dict.fromkeys((*REQUIRED, *MODELS, BALLOTS), str)} if kind == "csv" else {}
            found = datasets.load_dataset(str(place), split="train", **as_text)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        problems.append(f"data.hub={hub!r}: {error}")
        return None

    def rows() -> Iterator[Row]:
        batches = found.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)
        cells = (row for batch in batches for row in batch.to_pylist())
        return (Row(line, row) for line, row in enumerate(cells, 1))

    if not len(found):
        problems.append(f"data.hub={hub!r} is empty")
    identity = {"arrow": [content_hash(Path(file["filename"])) for file in found.cache_files]}
    return Source(path.name, found.column_names, rows, identity, f"data.hub={hub!r}")
