"""The run that a configuration trains: its folder, and what makes it that run."""

from pathlib import Path

from core.config import to_mapping
from distill.config import Config


def run_folder(config: Config) -> Path:
    """Where the configured run lives: students/<run>/fold=<k> or teachers/<run>/fold=<k>."""
    return config.root / f"{config.role}s" / config.run / f"fold={config.fold}"


def run_identity(config: Config) -> dict[str, object]:
    """The part of the configuration that decides what is trained; a finished run with another one is refused."""
    values = to_mapping(config)
    kept = ("role", "fold", "seed", "limit", "prompt", "model", "train", "loss", "optimizer")
    teacher = {name: values["teacher"][name] for name in ("name", "rows", "max_entropy")}
    distils = config.role == "student" and config.loss.distils
    return {
        **{name: values[name] for name in kept},
        "data": config.data.name,
        **({"teacher": teacher} if distils else {}),
    }
