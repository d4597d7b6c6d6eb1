"""The rules of a whole model: types of its weights, score head, range of its activations, attention, memory."""

from core.models.architecture import head_dim, head_of
from core.models.memory import GB, work_per_token
from core.pointwise import KEY, outputs_of
from students.export.config import T4Config
from students.export.t4.findings import Finding
from students.export.t4.model_files import ModelFiles
from students.export.t4.quantised_layers import is_ignored, some

BANNED = ("gemma2", "gemma3", "gemma3_text", "glm4")  # vllm/config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS
WIDEST_HEAD = 256
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
AS_FP16 = "export it with export.dtype=fp16"


def number_format(model: ModelFiles) -> Finding:
    """T4s compute in fp16."""
    if model.dtype == "float16":
        return Finding("dtype", True, model.dtype)
    if model.dtype == "float32" and model.quantisation is None and model.family in BANNED:
        return Finding("dtype", True, "float32 runs, in twice the memory and far slower than export.dtype=fp16")
    advice = f"T4s compute in float16 (vLLM does so unasked), and nobody measured whether it fits: {AS_FP16}"
    return Finding("dtype", False, f"{model.dtype}: {advice}")


def no_bfloat16(model: ModelFiles) -> Finding:
    """T4s do not have the type."""
    found = [name for name, (dtype, _) in model.tensors.items() if dtype == "BF16"]
    return Finding("bf16", not found, f"T4s do not have the type of {some(found)}: {AS_FP16}" if found else "nowhere")


def score_head(model: ModelFiles) -> Finding:
    """It is there, whole, and not quantised."""
    head = head_of(model.family)
    dtype, shape = model.tensors.get(f"{head}.weight", ("", []))
    expected = [len(outputs_of(KEY in model.config)), model.config["hidden_size"]]
    remedy = "export the judge again with the head left as it is"
    if packed := [name for name in model.tensors if name.startswith(f"{head}.") and not _is_plain(name, model)]:
        return Finding("score head", False, f"it is quantised ({some(packed)}): {remedy}")
    if not dtype:
        return Finding("score head", False, f"there is no {head}.weight: export a judge, not a language model")
    if shape != expected:
        return Finding("score head", False, f"it is {shape}, expected {expected}: {remedy}")
    quantised = model.quantisation or {}
    if quantised.get("quant_method") == "compressed-tensors" and not is_ignored(head, quantised):
        detail = f"quantization_config.ignore does not name it, so that vLLM looks for its scales: add {head!r} there"
        return Finding("score head", False, detail)
    return Finding("score head", True, f"{expected} in {dtype}")


def fp16_range(model: ModelFiles) -> Finding:
    """Its activations were measured and fit into fp16."""
    banned = model.family in BANNED and model.dtype != "float32"
    if model.margin is None:
        detail = "nobody measured whether its activations fit into fp16"
        if banned:
            detail += f", and vLLM refuses {model.family} in fp16 until that is known"
        return Finding("fp16 range", False if banned else None, f"{detail}: export it with distill.export")
    if not model.margin >= 1:
        detail = f"the largest activation fits {model.margin:.2g} times: raise export.margin to 2"
        return Finding("fp16 range", False, detail)
    detail = f"the largest activation fits {model.margin:.3g} times into fp16"
    if banned:
        detail += f"; vLLM refuses {model.family} in fp16 unless this project's plugin is installed (pip install .)"
    return Finding("fp16 range", True, detail)


def attention(model: ModelFiles) -> Finding:
    """By shared memory, of which T4s have 64 KB: vLLM's kernel in Triton takes 48 KB at 256, compiled for T4s by `make
    test-gpu-pins`, and asks for 96 KB at 512 (vLLM's issue 57712).
    """
    width = head_dim(model.config)
    if width > WIDEST_HEAD:
        detail = f"heads of {width}: vLLM's kernel for T4s ends at {WIDEST_HEAD}; export as gguf"
        return Finding("attention", False, detail)
    return Finding("attention", True, f"heads of {width}")


def memory(model: ModelFiles, t4: T4Config) -> Finding:
    """Weights as they lie in memory; keys, values and one layer's work by the formula of `core.models.memory`."""
    config, tokens = model.config, t4.batch_tokens
    keys = config.get("num_key_value_heads", config["num_attention_heads"]) * head_dim(config)
    sizes = config["num_hidden_layers"], keys, config["intermediate_size"], config["hidden_size"]
    cache, working = (tokens * each / GB for each in work_per_token(*sizes, BYTES.get(model.dtype, 2)))
    weights = model.weight_bytes / GB
    held = weights + cache + working
    detail = (
        f"{held:.2f} of the {t4.memory_gb:g} GB that an engine may hold: {weights:.2f} of weights, "
        f"{cache:.2f} of keys and values and {working:.2f} of work for {tokens} tokens"
    )
    if held > t4.memory_gb:
        return Finding("memory", False, f"{detail}; export as w8a8 or w4a16, or lower t4.batch_tokens")
    return Finding("memory", True, detail)


def _is_plain(name: str, model: ModelFiles) -> bool:
    head = head_of(model.family)
    return name in (f"{head}.weight", f"{head}.bias") and model.tensors[name][0] in ("F32", "F16", "BF16")
