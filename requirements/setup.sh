#!/usr/bin/env bash
# Makes the virtual environment from one locked set. `make setup` calls it; a second run with the same set returns at once.
#
#   PYTHON        interpreter, 3.11, 3.12 or 3.13                 default: the first of python3.11, .12, .13, python3 that is one
#   VENV          folder of the environment                       default: .venv
#   REQUIREMENTS  locked set to install                           default: requirements/cpu.txt
#   TORCH_INDEX   index that holds torch's CPU wheels             default: none, pip's own configuration decides
#   ALLOW_CUDA=1  take torch's CUDA build (gigabytes) although there is no GPU here
set -euo pipefail

VENV=${VENV:-.venv}
REQUIREMENTS=${REQUIREMENTS:-requirements/cpu.txt}
TORCH_INDEX=${TORCH_INDEX:-}
PYTHON=${PYTHON:-}

stop() { echo "setup: $*" >&2; exit 1; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
locked_for() { [[ $1 =~ ^3\.1[123]$ ]]; } # what pyproject.toml declares and the sets are resolved for

[ -f "$REQUIREMENTS" ] || stop "REQUIREMENTS=$REQUIREMENTS does not exist (run from the repository's root)"

# What is installed of the project itself, in the last step.
project=(pyproject.toml LICENSE teachers/plugin/judge_vllm_plugin.py)

# The stamp is written last: the hash means that this very set and this very plugin were installed completely.
stamp="$VENV/.installed"
wanted=$(cat "$REQUIREMENTS" "${project[@]}" | sha256sum)
py="$VENV/bin/python"
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ] && locked_for "$(version_of "$py")"; then
    echo "setup: $VENV already holds $REQUIREMENTS"
    exit 0
fi

if [ ! -x "$py" ]; then
    if [ -z "$PYTHON" ]; then
        for name in python3.11 python3.12 python3.13 python3; do
            if locked_for "$(version_of $name)"; then PYTHON=$name && break; fi
        done
        [ -n "$PYTHON" ] || stop "found no Python 3.11, 3.12 or 3.13, for which the sets are locked; install one or set PYTHON"
    fi
    found=$(version_of "$PYTHON")
    locked_for "$found" || stop "PYTHON=$PYTHON is not Python 3.11, 3.12 or 3.13, for which the sets are locked, but ${found:-nothing that runs}"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || stop "$PYTHON cannot make virtual environments; install its venv module (Debian: python$found-venv)"
    "$PYTHON" -m venv "$VENV"
fi
found=$(version_of "$py")
locked_for "$found" || stop "$VENV holds not Python 3.11, 3.12 or 3.13 but ${found:-nothing that runs}; remove it or set VENV"
rm -f "$stamp"

# The set is complete, and pip's resolver would refuse it (see the head of cpu.txt): hence --no-deps. Bytecode is compiled at the end, on all cores.
pip_install() { "$py" -m pip install --disable-pip-version-check -qq --no-compile "$@"; }
pin_of() { sed -n "s/^$1==\([^ ;#]*\).*/\1/p" "$REQUIREMENTS"; }

# 1. The build tools, at the set's own versions: what is built below does not depend on what an index offers today.
tools=()
for tool in pip setuptools wheel; do
    pin=$(pin_of $tool)
    [ -n "$pin" ] || stop "$REQUIREMENTS pins no $tool"
    tools+=("$tool==$pin")
done
echo "setup: $REQUIREMENTS into $VENV"
pip_install --no-deps "${tools[@]}"

# 2. torch, whose build (CPU or CUDA) depends on where pip looks. Ask for the versions first: that downloads nothing.
torch=$(pin_of torch)
[ -n "$torch" ] || stop "$REQUIREMENTS pins no torch"
index=()
[ -z "$TORCH_INDEX" ] || index=(--index-url "$TORCH_INDEX")
have=$("$py" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
if [ "${have%%+*}" != "$torch" ]; then
    # Newest first, and 2.13.0+cpu counts as newer than 2.13.0: the first match is the one that pip would take.
    offered=$("$py" -m pip index versions --disable-pip-version-check "${index[@]}" torch | sed -n 's/^Available versions: //p' | tr -d ' ' | tr ',' '\n' || true)
    build=$(grep -m1 -E "^${torch//./\\.}(\+|$)" <<<"$offered" || true)
    [ -n "$build" ] || stop "no torch $torch for this machine in ${TORCH_INDEX:-the indexes that pip is configured with}"
    if [[ $build == *+cpu ]]; then
        echo "setup: torch $build"
        pip_install --no-deps "${index[@]}" "torch==$build"
    else
        if [ "$(uname -s)" = Linux ]; then
            echo "setup: torch $build is a CUDA build: several gigabytes with its libraries"
            command -v nvidia-smi >/dev/null || [ "${ALLOW_CUDA:-}" = 1 ] ||
                stop "there is no GPU here (no nvidia-smi). Set TORCH_INDEX to an index of torch's CPU wheels, or ALLOW_CUDA=1 to take this build. Nothing of it was downloaded."
        fi
        # With its dependencies, the CUDA libraries: a CPU set does not list them. The set still constrains what it does list.
        pip_install -c "$REQUIREMENTS" "${index[@]}" "torch==$build"
    fi
fi

# 3. The rest. No isolation: deepspeed comes as source and is built against the torch above, with the tools above.
#    DS_BUILD_OPS=0 compiles none of its kernels now, so neither a compiler nor CUDA's is needed.
DS_BUILD_OPS=0 pip_install --no-deps --no-build-isolation -r "$REQUIREMENTS"

# 4. The project itself, which is vLLM's plugin alone. From a copy: a build leaves its folders where it happens.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp --parents "${project[@]}" "$copy"
pip_install --no-deps --no-build-isolation --force-reinstall "$copy"

# Some packages ship files of other Python versions; those do not compile and are never imported.
"$py" -m compileall -q -j 0 "$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null || true

echo "$wanted" >"$stamp"
echo "setup: done, $("$py" -m pip list --disable-pip-version-check 2>/dev/null | tail -n +3 | wc -l) packages in $VENV"
