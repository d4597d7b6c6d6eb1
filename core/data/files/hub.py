"""A split of a data set of the Hugging Face hub, or of a local folder that is laid out like one.

`datasets` says which files a split has, by the data set's card or their names. CSV, JSON and parquet are then read by
the readers of local files: `datasets` itself would make numbers of the ids 007 and times of dates. What it alone can
read (Arrow, archives, files with options in the card) comes through it.
"""

import glob
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from core.data.files.formats import KNOWN_SUFFIXES, suffix_of
from core.data.files.identity import content_hash
from core.data.files.reading import open_table
from core.data.files.rows import ROWS_AT_ONCE, Row, Source
from core.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetBuilder

log = logging.getLogger(__name__)
TRAIN = "train"
AT_HUB = re.compile(r"hf://datasets/(?P<repo>[^@]+)@(?P<revision>[^/]+)/(?P<path>.+)")
# What a card may say of CSV and JSON files that our readers see for themselves; any other option is for `datasets`.
SEEN = {"name", "version", "description", "data_files", "data_dir", "sep", "delimiter", "features"}


def local_folder(hub: str) -> Path | None:
    """The folder of this machine that `data.hub` names; None where it names a data set of the hub."""
    return next((Path(place) for place in (hub, _chosen(hub)[0]) if Path(place).exists()), None)


def open_hub(hub: str, problems: list[str]) -> Source | None:
    """The rows of `NAME`, `NAME:SPLIT` or `NAME:CONFIGURATION/SPLIT`; the split is `train` unless it is named.

    None, and lines in `problems`, where they cannot be had.
    """
    import datasets
    from httpx import HTTPError

    name, config, split = (hub, None, TRAIN) if Path(hub).exists() else _chosen(hub)
    folder = Path(name).resolve() if Path(name).exists() else None
    try:
        if folder and glob.escape(str(folder)) != str(folder):
            raise UserError("datasets takes the folder's path for a pattern: rename it, without any of []*?")
        builder = _builder(name, config)
        files = _files(builder, name, config, split)
        if not _is_ours(builder, files):
            return _through_datasets(datasets.load_dataset(name, config, split=split), name, hub, problems)
        paths = _downloaded(files) if _place(files[0]) else [Path(file) for file in files]
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        problems.append(f"data.hub={hub!r}: {error}")
        return None
    source = open_table(paths, Path(name).resolve().name, problems)
    return source and replace(source, where=f"data.hub={hub!r}")


def _chosen(hub: str) -> tuple[str, str | None, str]:
    """The name, the configuration and the split."""
    name, colon, choice = hub.rpartition(":")
    if not colon:
        return hub, None, TRAIN
    config, _, split = choice.rpartition("/")
    return name, config or None, split


def _builder(name: str, config: str | None) -> "DatasetBuilder":
    import datasets

    try:
        return datasets.load_dataset_builder(name, config)
    except ValueError as error:
        configs = datasets.get_dataset_config_names(name)
        if config in configs or len(configs) < 2:
            raise
        example = f"data.hub={name}:{configs[0]}/{TRAIN}"
        raise UserError(f"name one of the configurations {configs} and its split, as in {example}") from error


def _files(builder: "DatasetBuilder", name: str, config: str | None, split: str) -> list[str]:
    """The files of the split; empty where `datasets` alone knows them."""
    files = builder.config.data_files or {}
    splits = [str(key) for key in files or builder.info.splits or {}]
    if split not in splits:
        example = f"data.hub={name}:{config + '/' if config else ''}{splits[0]}" if splits else "another data set"
        raise UserError(f"there is no split {split!r}: name one of {splits}, as in {example}")
    if len(splits) > 1:
        log.info("data.hub=%s: of the splits %s, %s is read", name, splits, split)
    return [str(file) for file in files.get(split, [])]


def _is_ours(builder: "DatasetBuilder", files: list[str]) -> bool:
    """Whether our own readers read all files, as the card wants them read."""
    usual, places = type(builder.config)(), {_place(file) for file in files}
    options = {key for key, value in vars(builder.config).items() if value != getattr(usual, key, None)} - SEEN
    known = all(suffix_of(Path(file)) in KNOWN_SUFFIXES for file in files)
    return known and not options and len(places) == 1 and None not in places


def _place(file: str) -> tuple[str, ...] | None:
    """The data set of the hub and its revision that a file is of; (), this machine; None: another place in the web."""
    match = AT_HUB.fullmatch(file)
    return (match["repo"], match["revision"]) if match else None if "://" in file else ()


def _downloaded(files: list[str]) -> list[Path]:
    """Where files of the hub lie on this machine. All are of one data set and revision."""
    from huggingface_hub import snapshot_download

    found = [match for file in files if (match := AT_HUB.fullmatch(file))]
    assert len(found) == len(files), files
    paths = [match["path"] for match in found]
    folder = snapshot_download(
        found[0]["repo"],
        repo_type="dataset",
        revision=unquote(found[0]["revision"]),
        allow_patterns=[glob.escape(path) for path in paths],
    )
    return [Path(folder, path) for path in paths]


def _through_datasets(found: Any, name: str, hub: str, problems: list[str]) -> Source | None:
    if not len(found):
        problems.append(f"data.hub={hub!r} is empty")
        return None

    def rows() -> Iterator[Row]:
        batches = found.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)
        cells = (row for batch in batches for row in batch.to_pylist())
        return (Row(line, row) for line, row in enumerate(cells, 1))

    identity = {"arrow": [content_hash(Path(file["filename"])) for file in found.cache_files]}
    return Source(Path(name).resolve().name, found.column_names, rows, identity, f"data.hub={hub!r}")
