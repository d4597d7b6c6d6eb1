"""Whether the vLLM that is installed here has machine code for T4s, by its version."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from students.export.t4.findings import Finding

# Release of vLLM -> whether its wheel on PyPI holds machine code for sm_75. `make test-gpu-pins` counts it in the one
# that requirements/gpu-teacher.txt pins.
RELEASES = {"0.33": True}
CPU_BUILD = "+cpu"
PINNED = "that of requirements/gpu-teacher.txt"


def kernels() -> Finding:
    """None where this environment cannot tell: without vLLM, with its CPU build or a release that the table lacks."""
    if find_spec("vllm") is None:
        detail = "cannot be determined here: this environment has no vLLM; check the folder in the one that serves it"
        return Finding("kernels", None, detail)
    try:
        installed = version("vllm")
    except PackageNotFoundError:
        installed = CPU_BUILD  # as a package of another name
    if installed.endswith(CPU_BUILD):
        return Finding("kernels", None, "cannot be determined here: this is vLLM's CPU build")
    release = ".".join(installed.split(".")[:2])
    if release not in RELEASES:
        detail = f"whether vLLM {installed} has code for T4s is not known: install {PINNED}, which has"
        return Finding("kernels", None, detail)
    if not RELEASES[release]:
        return Finding("kernels", False, f"vLLM {installed} has no code for T4s: install {PINNED}")
    return Finding("kernels", True, f"vLLM {installed} has code for T4s")
