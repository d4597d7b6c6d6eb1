"""Whether a T4 can run an exported folder, as far as its files tell: no GPU is needed, and none is asked.

The rules are those of vLLM 0.33, which `requirements/gpu-teacher.txt` pins, on compute capability 7.5: activations in
fp16; int8 by CUTLASS, int8 and int4 weights under fp16 activations by Marlin. A folder of llama.cpp's (`*.gguf`) needs
room and its score head alone.
"""

import json
import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.artefacts.contents import MANIFEST
from core.errors import UserError
from core.exported import GGUF_BACKBONE
from core.models.architecture import head_dim
from core.models.memory import GB, work_per_token
from core.models.shards import stored
from core.records import LABELS
from students.export.config import T4Config
from students.merging import SCORE

MARGIN = "fp16_margin"  # in the manifest's `extra`
BANNED = ("gemma2", "gemma3", "gemma3_text", "glm4")  # vllm/config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS
GROUPS, WHOLE_ROW = (32, 64, 128), (-1, None)  # vllm's marlin_utils.py, MARLIN_SUPPORTED_GROUP_SIZES
TILE_OUTPUTS, TILE_INPUTS = 64, 128  # the same file, GPTQ_MARLIN_MIN_THREAD_N and _K
CUTLASS_MULTIPLE = 16  # vllm/_custom_ops.py, cutlass_scaled_mm
DATA_DEPENDENT_ORDER = ("group", "dynamic", True)  # of columns, in compressed-tensors' `actorder` and GPTQ's `desc_act`
PER_TOKEN = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
SCHEME_RULES = {  # and what holds where none is broken
    "weights": "int8 or int4",
    "symmetric": "without zero points",
    "groups": "of 32, 64 or 128, or whole rows",
    "order": "columns as they are stored",
    "activations": "fp16, or int8 with a scale for each token",
}
EXAMPLE = "artifacts/exports/demo/w8a8"
NEEDED = (  # in config.json: what the rules and the memory's formula read
    *("model_type", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)
AS_FP16 = "export it with export.dtype=fp16"
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
BYTES_OF = {"F16": 2, "BF16": 2, "F32": 4}  # as safetensors names them
# A fatbin in an ELF file, as XLA's cuda_fatbin.h and Cricket's cpu-elf2.h describe it: a header of 16 bytes (magic,
# version 1, size of the header, bytes that follow), then entries, each with a header of its own (kind, size of that
# header, bytes of code, architecture) that stays readable where the code is compressed.
FATBIN, MAGIC = struct.Struct("<4sHHQ"), struct.pack("<I", 0xBA55ED50)
ENTRY = struct.Struct("<H2xIQ12xI")
CUBINS, TURING = (0x02, 0x10), 75  # kinds of entries with machine code; 0x01 is PTX, which is code for the driver

Tensors = Mapping[str, tuple[str, list[int]]]  # name -> safetensors' name of the type, shape


@dataclass(frozen=True)
class Finding:
    """Whether a rule holds, None where that cannot be told here; `detail` says what to do where it does not."""

    rule: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Scheme:
    """How a kind of layers is quantised, in compressed-tensors' words."""

    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None


def check_t4(folder: Path, t4: T4Config, *, load_in_8bit: bool = False) -> list[Finding]:
    """All rules, on a folder that `distill.export` wrote; `load_in_8bit` as its scorer does (bitsandbytes).

    Raises `UserError` where it is no such folder, and where a file of weights is broken.
    """
    config = _read_config(folder)
    tensors = stored(folder)
    if (folder / GGUF_BACKBONE).exists():
        _check_whole(folder / GGUF_BACKBONE)
        return [_head(config, tensors), _memory(config, _file_bytes(folder), t4)]
    rounded = load_in_8bit and "quantization_config" not in config
    weight_bytes = _file_bytes(folder) - (_saved_in_8bit(tensors) if rounded else 0)
    return [
        _dtype(config),
        _bfloat16(tensors),
        _head(config, tensors),
        *_quantisation(config, tensors),
        _range(config, _recorded_margin(folder)),
        _attention(config),
        _memory(config, weight_bytes, t4),
        _kernels(),
    ]


def _read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a judge. Raises `UserError` where it is none, or another model's."""
    path = folder / "config.json"

    def refused(reason: str) -> UserError:
        return UserError(f"{folder} holds no exported judge ({reason}): give a folder such as {EXAMPLE}")

    if not path.exists():
        raise refused("there is no config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise refused(f"config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise refused(f"config.json is a {type(config).__name__}, expected an object")
    if missing := [key for key in NEEDED if key not in config]:
        raise refused(f"config.json of a {config.get('model_type', 'nameless')} model lacks {', '.join(missing)}")
    quantised = config.get("quantization_config")
    if quantised is not None and not _is_whole(quantised):
        raise refused(f"quantization_config in config.json does not say how the weights are stored: {quantised}")
    return config


def _is_whole(quantised: Any) -> bool:
    """Whether a quantization_config has what the rules read."""
    if not isinstance(quantised, dict):
        return False
    if quantised.get("quant_method") == "gptq":
        return {"bits", "group_size"} <= quantised.keys()
    groups = quantised.get("config_groups")
    if quantised.get("quant_method") == "compressed-tensors":
        return isinstance(groups, dict) and bool(groups) and all(isinstance(group, dict) for group in groups.values())
    return True  # a method that no rule knows, which `_quantisation` says


def _check_whole(path: Path) -> None:
    """Raise `UserError` where a GGUF file is cut short."""
    from gguf import GGUFReader

    try:
        GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is no whole GGUF file ({error}): copy or export it again") from error


def sm75_kernels(site: Path) -> dict[str, int] | None:
    """How many pieces of machine code for T4s each of vLLM's kernel libraries in its folder `site` holds.

    None where they hold no code for any GPU: vLLM's CPU build. The wheel of 0.33 on PyPI has 62 in one and 16 in the
    other; the first version that gives up Turing will have none.
    """
    libraries = sorted({*site.glob("_C*.so"), *site.glob("_moe_C*.so")})
    found = {path.name: [*_architectures(path)] for path in libraries}
    if not any(found.values()):
        return None
    return {name: architectures.count(TURING) for name, architectures in found.items()}


def _architectures(library: Path) -> Iterator[int]:
    """The architecture of every cubin in an ELF file, 75 for sm_75."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(MAGIC)
        while 0 <= at <= len(data) - FATBIN.size:
            _, version, header, size = FATBIN.unpack_from(data, at)
            entry, end = at + header, at + header + size
            if version != 1 or header != FATBIN.size or end > len(data):  # the same four bytes by chance
                entry = end = at + len(MAGIC)
            while entry <= end - ENTRY.size:
                kind, header, size, architecture = ENTRY.unpack_from(data, entry)
                if kind in CUBINS:
                    yield architecture
                entry += max(header, ENTRY.size) + size
            at = data.find(MAGIC, end)


def _dtype(config: Mapping[str, Any]) -> Finding:
    dtype = _stored(config)
    if dtype == "float16":
        return Finding("dtype", True, dtype)
    if dtype == "float32" and "quantization_config" not in config and config.get("model_type") in BANNED:
        return Finding("dtype", True, "float32 runs, in twice the memory and far slower than export.dtype=fp16")
    detail = f"{dtype}: T4s compute in float16 (vLLM does so unasked), and nobody measured whether it fits: {AS_FP16}"
    return Finding("dtype", False, detail)


def _bfloat16(tensors: Tensors) -> Finding:
    found = [name for name, (dtype, _) in tensors.items() if dtype == "BF16"]
    return Finding("bf16", not found, f"T4s do not have the type of {_some(found)}: {AS_FP16}" if found else "nowhere")


def _head(config: Mapping[str, Any], tensors: Tensors) -> Finding:
    dtype, shape = tensors.get(f"{SCORE}.weight", ("", []))
    expected = [len(LABELS), config["hidden_size"]]
    remedy = "export the judge again with the head left as it is"
    if packed := [name for name in tensors if name.startswith(f"{SCORE}.") and not _is_plain(name, tensors)]:
        return Finding("score head", False, f"it is quantised ({_some(packed)}): {remedy}")
    if not dtype:
        return Finding("score head", False, f"there is no {SCORE}.weight: export a judge, not a language model")
    if shape != expected:
        return Finding("score head", False, f"it is {shape}, expected {expected}: {remedy}")
    quantised = config.get("quantization_config", {})
    if quantised.get("quant_method") == "compressed-tensors" and not _matches(SCORE, quantised.get("ignore", [])):
        detail = f"quantization_config.ignore does not name it, so that vLLM looks for its scales: add {SCORE!r} there"
        return Finding("score head", False, detail)
    return Finding("score head", True, f"{expected} in {dtype}")


def _quantisation(config: Mapping[str, Any], tensors: Tensors) -> list[Finding]:
    """The rules of quantised folders, over every kind of layers that the configuration names."""
    quantised = config.get("quantization_config")
    if quantised is None:
        return []
    method = quantised.get("quant_method")
    if method not in ("compressed-tensors", "gptq"):
        detail = f"{method} is no method of vLLM's own for T4s: export as w8a8, w8a16, w4a16 or gptq"
        return [Finding("method", False, detail)]
    schemes = _schemes(quantised)
    found = dict(problem for scheme in schemes for problem in _problems(scheme))
    rules = [Finding(rule, rule not in found, found.get(rule, good)) for rule, good in SCHEME_RULES.items()]
    return [Finding("method", True, method), *rules, _tiles(tensors, schemes)]


def _schemes(quantised: Mapping[str, Any]) -> list[Scheme]:
    if quantised["quant_method"] == "compressed-tensors":
        groups = quantised["config_groups"].values()
        return [Scheme(group.get("weights") or {}, group.get("input_activations")) for group in groups]
    weights = {
        "num_bits": quantised["bits"],
        "type": "int",
        "symmetric": quantised.get("sym", False),
        "group_size": quantised["group_size"],
        "actorder": quantised.get("desc_act", False),
    }
    return [Scheme(weights, None)]


def _problems(scheme: Scheme) -> Iterator[tuple[str, str]]:
    """Which of the rules a kind of layers breaks, and what to do."""
    weights, given = scheme.weights, scheme.activations
    bits, kind, size, order = (weights.get(key) for key in ("num_bits", "type", "group_size", "actorder"))
    grouped = size not in WHOLE_ROW
    if kind != "int" or bits not in (4, 8):
        yield "weights", f"{bits} bits of {kind}: T4s have kernels for int8 and int4; export as w8a8, w8a16 or w4a16"
    elif given is not None and bits != 8:
        yield "weights", f"int{bits} under int8 activations needs a newer GPU: export as w8a8 or w4a16"
    if not weights.get("symmetric"):
        yield "symmetric", "weights have zero points: quantise with symmetric=True (GPTQ: sym=True)"
    if grouped and given is not None:
        yield "groups", f"of {size} under int8 activations: quantise w8a8 with one scale an output channel"
    elif grouped and size not in GROUPS:
        yield "groups", f"of {size}: set export.quantisation.group to 32, 64 or 128, or to -1 for whole rows"
    if grouped and order in DATA_DEPENDENT_ORDER:
        yield "order", f"columns are reordered ({order}), which vLLM no longer loads: quantise with desc_act=False"
    if given is not None and (found := {key: given.get(key) for key in PER_TOKEN}) != PER_TOKEN:
        yield "activations", f"{found}: export as w8a8, which rounds them to int8 with a scale for each token"


def _tiles(tensors: Tensors, schemes: list[Scheme]) -> Finding:
    """Only a note: odd shapes run, but slower."""
    int8 = any(scheme.activations is not None for scheme in schemes)
    outputs, inputs = (CUTLASS_MULTIPLE,) * 2 if int8 else (TILE_OUTPUTS, TILE_INPUTS)
    shapes = _linears(tensors, int(schemes[0].weights.get("num_bits") or 8))
    odd = [name for name, (rows, columns) in shapes.items() if rows % outputs or columns % inputs]
    if not odd:
        return Finding("tiles", True, f"every layer is made of tiles of {outputs} x {inputs}")
    way = "run by Triton, not CUTLASS" if int8 else "filled up with zeros by vLLM 0.33 (earlier ones refuse them)"
    return Finding("tiles", True, f"not made of tiles of {outputs} x {inputs}: {_some(odd)}; they are {way}")


def _linears(tensors: Tensors, bits: int) -> dict[str, tuple[int, int]]:
    """Quantised layers, [outputs, inputs]; packed ones hold 32 / bits weights in an int32."""
    shapes = {}
    for name, (dtype, shape) in tensors.items():
        if name.endswith(".weight") and dtype == "I8":
            shapes[name] = shape[0], shape[1]
        elif name.endswith(".weight_packed"):
            shapes[name] = shape[0], shape[1] * 32 // bits
        elif name.endswith(".qweight"):
            shapes[name] = shape[1], shape[0] * 32 // bits
    return shapes


def _recorded_margin(folder: Path) -> float | None:
    """How many times the largest activation fits into fp16, as `distill.export` measured it."""
    manifest = folder / MANIFEST
    return json.loads(manifest.read_text()).get("extra", {}).get(MARGIN) if manifest.exists() else None


def _range(config: Mapping[str, Any], margin: float | None) -> Finding:
    kind = config["model_type"]
    banned = kind in BANNED and _stored(config) != "float32"
    if margin is None:
        detail = "nobody measured whether its activations fit into fp16"
        if banned:
            detail += f", and vLLM refuses {kind} in fp16 until that is known"
        return Finding("fp16 range", False if banned else None, f"{detail}: export it with distill.export")
    if not margin >= 1:
        return Finding("fp16 range", False, f"the largest activation fits {margin:.2g} times: raise export.margin to 2")
    detail = f"the largest activation fits {margin:.3g} times into fp16"
    if banned:
        detail += f"; vLLM refuses {kind} in fp16 unless this project's plugin is installed beside it (pip install .)"
    return Finding("fp16 range", True, detail)


def _memory(config: Mapping[str, Any], weight_bytes: int, t4: T4Config) -> Finding:
    """Weights as they are held; keys, values and one layer's work by the formula of `core.models.memory`."""
    tokens, keys = t4.batch_tokens, config["num_key_value_heads"] * head_dim(config)
    sizes = config["num_hidden_layers"], keys, config["intermediate_size"], config["hidden_size"]
    cache, working = (tokens * each / GB for each in work_per_token(*sizes, BYTES.get(_stored(config), 2)))
    weights = weight_bytes / GB
    held = weights + cache + working
    detail = (
        f"{held:.2f} of the {t4.memory_gb:g} GB that an engine may hold: {weights:.2f} of weights, "
        f"{cache:.2f} of keys and values and {working:.2f} of work for {tokens} tokens"
    )
    if held > t4.memory_gb:
        return Finding("memory", False, f"{detail}; export as w8a8 or w4a16, or lower t4.batch_tokens")
    return Finding("memory", True, detail)


def _file_bytes(folder: Path) -> int:
    """The weights of a folder as its files hold them."""
    return sum(path.stat().st_size for suffix in ("safetensors", "gguf") for path in folder.glob(f"*.{suffix}"))


def _saved_in_8bit(tensors: Tensors) -> int:
    """Bytes less than stored where bitsandbytes rounds the decoder's linear layers to int8, with a fp32 scale a row.

    Embeddings, norms and the score head stay as they are.
    """
    shapes = [(BYTES_OF[dtype], shape) for name, (dtype, shape) in tensors.items() if ".layers." in name]
    return sum((size - 1) * math.prod(shape) - 4 * shape[0] for size, shape in shapes if len(shape) == 2)


def _attention(config: Mapping[str, Any]) -> Finding:
    """By shared memory, of which T4s have 64 KB: vLLM's kernel in Triton takes 48 KB at 256, compiled for T4s by `make
    test-gpu-pins`, and asks for 96 KB at 512 (vLLM's issue 57712).
    """
    width = head_dim(config)
    if width > 256:
        return Finding("attention", False, f"heads of {width}: vLLM's kernel for T4s ends at 256; export as gguf")
    return Finding("attention", True, f"heads of {width}")


def _kernels() -> Finding:
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        detail = "cannot be told here: this environment has no vLLM; check the folder in the one that serves it"
        return Finding("kernels", None, detail)
    found = sm75_kernels(Path(spec.submodule_search_locations[0]))
    if found is None:
        return Finding("kernels", None, "cannot be told here: this is vLLM's CPU build")
    if not any(count for name, count in found.items() if name.startswith("_C")):  # of dense layers
        return Finding("kernels", False, "this vLLM has no code for T4s: install that of requirements/gpu-teacher.txt")
    return Finding("kernels", True, ", ".join(f"{count} for T4s in {name}" for name, count in found.items()))


def _stored(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _is_plain(name: str, tensors: Tensors) -> bool:
    return name in (f"{SCORE}.weight", f"{SCORE}.bias") and tensors[name][0] in ("F32", "F16", "BF16")


def _matches(name: str, patterns: list[str]) -> bool:
    """In compressed-tensors' notation, where `re:` begins a regular expression."""
    return any(re.match(p[3:], name) if p.startswith("re:") else p == name for p in patterns)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
