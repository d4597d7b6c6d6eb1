#!/usr/bin/env bash
# Makes the virtual environment from one locked set. `make setup` calls it, and no variable is needed. One that was stopped goes on where it
# was: what is installed stays, what is downloaded lies in pip's cache. With the set complete it returns at once.
#
#   PYTHON        interpreter, 3.11, 3.12 or 3.13                 default: the newest that runs and for which there is a fitting torch
#   VENV          folder of the environment                       default: .venv
#   REQUIREMENTS  locked set to install                           default: requirements/cpu.txt
#   TORCH_INDEX   index that holds torch's wheels                 default: pip's own; without a GPU also PyTorch's, for its CPU build
#   ALLOW_CUDA=1  take torch's CUDA build (gigabytes) although there is no GPU here
set -euo pipefail

VENV=${VENV:-.venv}
REQUIREMENTS=${REQUIREMENTS:-requirements/cpu.txt}
TORCH_INDEX=${TORCH_INDEX:-}
PYTHON=${PYTHON:-}

CPU_INDEX=https://download.pytorch.org/whl/cpu
ATTEMPTS=3                  # of each download, beside pip's own
PAUSE=${SETUP_PAUSE:-10}    # seconds before the next attempt
CHUNK=25                    # packages in one call of pip: what a kill can cost, and how often there is a line of progress
py="$VENV/bin/python"
log="$VENV/setup.log"

say() { echo "setup: $*"; }
stop() { echo "setup: $*" >&2; exit 1; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
locked_for() { [[ $1 =~ ^3\.1[123]$ ]]; } # what pyproject.toml declares and the sets are resolved for
makes_venvs() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }
pin_of() { sed -n "s/^$1==\([^ ;#]*\).*/\1/p" "$REQUIREMENTS"; }
has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

[ -f "$REQUIREMENTS" ] || stop "REQUIREMENTS=$REQUIREMENTS does not exist (run from the repository's root)"
torch=$(pin_of torch)
[ -n "$torch" ] || stop "$REQUIREMENTS pins no torch"

# --- pip, whose output goes to the log

# On a terminal, the line of progress: what is downloaded or installed just now. Else nothing.
show() { # label
    local line name="" size="" got all
    while IFS= read -r line; do
        [ -t 1 ] || continue
        case $line in
            *Downloading\ *) name=${line#*Downloading }; name=${name##*/}; size="" ;;
            Progress\ *) read -r _ got _ all <<<"$line"; size="$((got / 1000000)) of $((all / 1000000)) MB" ;;
            Installing\ collected*) name="installing"; size="" ;;
            *) continue ;;
        esac
        printf '\r\033[Ksetup: %s  %s %s' "$1" "${name:0:60}" "$size"
    done
    [ ! -t 1 ] || printf '\r\033[K'
}

# `pip install` with what follows the label. A download that breaks is tried again; what cannot get better is not.
pip_install() { # label, arguments
    local label=$1 attempt start
    shift
    for ((attempt = 1; ; attempt++)); do
        start=$(wc -l <"$log")
        if "$py" -m pip install --disable-pip-version-check --no-input --no-compile "$@" 2>&1 | tee -a "$log" | show "$label"; then return; fi
        [ "$attempt" -lt "$ATTEMPTS" ] || break
        if tail -n "+$((start + 1))" "$log" | grep -qE 'No matching distribution|No space left|Permission denied|metadata-generation-failed'; then break; fi
        say "$label: pip failed, trying again in $PAUSE s ($((attempt + 1)) of $ATTEMPTS)"
        sleep "$PAUSE"
    done
    tail -n "+$((start + 1))" "$log" | grep -v '^Progress ' | tail -n 8 >&2
    stop "$label: pip failed, see above and $log; make setup goes on from here"
}

# --- Which Python, which torch

# The version of torch's build that pip would take with these options; nothing where there is none of the pinned version. Downloads nothing.
build_with() { # options
    # Newest first, and 2.13.0+cpu counts as newer than 2.13.0: the first match is the one that pip would take.
    "$py" -m pip index versions --disable-pip-version-check "$@" torch 2>/dev/null |
        sed -n 's/^Available versions: //p' | tr -d ' ' | tr ',' '\n' | grep -m1 -E "^${torch//./\\.}(\+|$)" || true
}

# Sets `build`, torch's build for the environment's Python, and `index`, pip's options for it; or `why` there is none.
find_torch() {
    local where="where pip looks" offered
    why="" index=()
    [ -z "$TORCH_INDEX" ] || index=(--index-url "$TORCH_INDEX") where="in TORCH_INDEX=$TORCH_INDEX"
    build=$(build_with "${index[@]}")
    # A CPU build, or a machine where the plain one is none for CUDA, or one that can use it.
    [[ $build != *+cpu ]] || return 0
    if [ -n "$build" ] && { [ "$(uname -s)" != Linux ] || [ "${ALLOW_CUDA:-}" = 1 ] || has_gpu; }; then return 0; fi
    offered=${build:+"only its CUDA build, gigabytes, and there is no GPU here"}
    # A set for GPUs lists CUDA's libraries; a CPU build is none for it.
    if [ -z "$TORCH_INDEX" ] && [ "$(uname -s)" = Linux ] && ! has_gpu && ! grep -q '^nvidia-cu' "$REQUIREMENTS"; then
        index=(--index-url "$CPU_INDEX") where="$where and in $CPU_INDEX"
        build=$(build_with "${index[@]}" --timeout 15 --retries 1)
        [[ $build != *+cpu ]] || return 0
    fi
    build="" why="torch $torch $where: ${offered:-nothing for this machine}"
}

# Makes the environment with Python $1.
make_venv() {
    local found
    found=$(version_of "$1")
    locked_for "$found" || stop "PYTHON=$1 is not Python 3.11, 3.12 or 3.13, for which the sets are locked, but ${found:-nothing that runs}"
    makes_venvs "$1" || stop "$1 cannot make virtual environments; install its venv module (Debian: python$found-venv)"
    "$1" -m venv "$VENV"
}

# --- 1. The environment

# What is installed of the project itself, in the last step.
project=(pyproject.toml LICENSE teachers/plugin/judge_vllm_plugin.py)

# The stamp is written last: the hash means that this very set and this very plugin were installed completely.
stamp="$VENV/.installed"
wanted=$(cat "$REQUIREMENTS" "${project[@]}" | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ] && locked_for "$(version_of "$py")"; then
    say "$VENV already holds $REQUIREMENTS"
    exit 0
fi
say "$REQUIREMENTS into $VENV, 3.7 GB: two minutes to ten, as the downloads take. Stop it at any time; make setup goes on."

installed=""
if [ -e "$py" ]; then
    found=$(version_of "$py")
    locked_for "$found" || stop "$VENV holds not Python 3.11, 3.12 or 3.13 but ${found:-nothing that runs}; remove it or set VENV"
    rm -f "$stamp"
    # A kill between the last file of a package and the list of its files: pip would take it for installed. It is installed anew.
    find "$VENV/lib" -maxdepth 3 -name '*.dist-info' -type d '!' -execdir test -e '{}/RECORD' ';' -exec rm -r '{}' +
    has_pip() { "$py" -m pip --version >/dev/null 2>&1; }
    has_pip || "$py" -m ensurepip --default-pip >/dev/null 2>&1 || true
    has_pip || stop "$VENV has no working pip; remove it or set VENV"
    installed=$("$py" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
    if [ "${installed%%+*}" != "$torch" ]; then
        find_torch
        [ -n "$build" ] || stop "$why. Set TORCH_INDEX to an index of its CPU wheels, or ALLOW_CUDA=1 to take the CUDA build, or remove $VENV to try another Python."
    fi
else
    [ -z "$(ls -A "$VENV" 2>/dev/null)" ] || [ -e "$VENV/pyvenv.cfg" ] || stop "$VENV is no virtual environment; remove it or set VENV"
    candidates=()
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if [ -n "$PYTHON" ] || { locked_for "$(version_of $name)" && makes_venvs $name; }; then candidates+=("$name"); fi
    done
    if [ ${#candidates[@]} = 0 ]; then
        for name in python3.13 python3.12 python3.11 python3; do # one that only lacks its venv module: say so
            if locked_for "$(version_of $name)"; then make_venv $name; fi
        done
        stop "found no Python 3.11, 3.12 or 3.13, for which the sets are locked; install one or set PYTHON"
    fi
    for name in "${candidates[@]}"; do
        say "1/5 environment with $name ($(version_of "$name"))"
        make_venv "$name"
        find_torch
        [ -z "$build" ] || break
        say "1/5 not with $name: $why"
        rm -rf "$VENV"
    done
    [ -n "$build" ] || stop "no fitting torch for ${candidates[*]}. Set TORCH_INDEX to an index of torch's CPU wheels, or ALLOW_CUDA=1 to take its CUDA build. Nothing of it was downloaded."
fi
touch "$log"

# --- 2. The build tools, at the set's own versions: what is built below does not depend on what an index offers today.
# The set is complete, and pip's resolver would refuse it (see the head of cpu.txt): hence --no-deps. Bytecode is compiled at the end, on all cores.
tools=()
for tool in pip setuptools wheel; do
    pin=$(pin_of $tool)
    [ -n "$pin" ] || stop "$REQUIREMENTS pins no $tool"
    tools+=("$tool==$pin")
done
say "2/5 build tools"
pip_install "2/5 build tools" --no-deps "${tools[@]}"

# --- 3. torch, whose build (CPU or CUDA) depends on where pip looks.
if [ "${installed%%+*}" = "$torch" ]; then
    say "3/5 torch $installed is there"
elif [[ $build == *+cpu ]]; then
    say "3/5 torch $build, the CPU build${index[1]:+ from ${index[1]}}"
    pip_install "3/5 torch $build" --progress-bar raw --no-deps "${index[@]}" "torch==$build"
else
    say "3/5 torch $build, a CUDA build: several gigabytes with its libraries"
    # With its dependencies, the CUDA libraries: a CPU set does not list them. The set still constrains what it does list.
    pip_install "3/5 torch $build" --progress-bar raw -c "$REQUIREMENTS" "${index[@]}" "torch==$build"
fi

# --- 4. The rest. No isolation: deepspeed comes as source and is built against the torch above, with the tools above.
#        DS_BUILD_OPS=0 compiles none of its kernels now, so neither a compiler nor CUDA's is needed.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mapfile -t pins < <(grep -E '^[A-Za-z0-9]' "$REQUIREMENTS")
for ((done = 0; done < ${#pins[@]}; done += CHUNK)); do
    printf '%s\n' "${pins[@]:done:CHUNK}" >"$work/chunk.txt"
    upto=$((done + CHUNK < ${#pins[@]} ? done + CHUNK : ${#pins[@]}))
    DS_BUILD_OPS=0 pip_install "4/5 packages $((done + 1)) to $upto of ${#pins[@]}" --progress-bar raw --no-deps --no-build-isolation -r "$work/chunk.txt"
    say "4/5 $upto of ${#pins[@]} packages, $(du -sm "$VENV" | cut -f1) MB, $SECONDS s"
done

# --- 5. The project itself, which is vLLM's plugin alone. From a copy: a build leaves its folders where it happens.
say "5/5 the project's plugin, bytecode"
cp --parents "${project[@]}" "$work"
pip_install "5/5 plugin" --no-deps --no-build-isolation --force-reinstall "$work"
# Some packages ship files of other Python versions; those do not compile and are never imported.
"$py" -m compileall -q -j 0 "$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null || true

echo "$wanted" >"$stamp"
say "done in $SECONDS s: ${#pins[@]} packages in $VENV. Next: make demo"
