#!/usr/bin/env bash
# Resolves the sets for GPUs anew: bash requirements/lock.sh. Needs uv (made with 0.13.9). Pins stay as they are where they still fit.
#
# Each set serves every Python that pyproject.toml declares ([tool.uv] environments there): a pin that only some of them need says so. What is
# the same on every line, Linux on x86-64, is cut off.
set -euo pipefail
cd "$(dirname "$0")/.."

common="python_full_version < '3\.14'|sys_platform == 'linux'|platform_machine == 'x86_64'|implementation_name == 'cpython'|platform_python_implementation != 'PyPy'"

lock() { # name, then what uv is given
    local set="requirements/gpu-$1.txt"
    head="# Resolved by requirements/lock.sh for Linux x86-64 with glibc 2.31 or newer, Python 3.11 to 3.13, CUDA 13. Not run: no GPU at hand when it was made.
# Install: make setup REQUIREMENTS=$set VENV=.venv-$1"
    uv pip compile -q --universal --fork-strategy fewest --no-header --annotation-style line -o "$set" "${@:2}" pyproject.toml "requirements/gpu-$1.in"
    sed -i -E "/^#/d; s/ (;|and) ($common)//g; s/ and python_full/ ; python_full/" "$set"
    sed -i "1i $(sed 's/$/\\/; $s/\\$//' <<<"$head")" "$set"
}

lock teacher --extra teacher --extra serve --override requirements/gpu-teacher-override.in
lock student --extra student
lock export --extra export
