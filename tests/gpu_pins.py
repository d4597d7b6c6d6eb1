"""The GPU wheel of vLLM that is pinned, unpacked and read: `make test-gpu-pins` downloads it and Triton (a gigabyte).

Not imported, but for the attention kernel, which Triton compiles for a T4 in a process of its own.
"""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from students.export.t4.kernels import RELEASES
from students.export.t4.quantised_layers import GROUPS, TILE_INPUTS, TILE_OUTPUTS
from students.export.t4.rules import BANNED
from tests.test_locks import pins

ROOT = Path(__file__).resolve().parent.parent
SHARED_MEMORY = 65_536  # bytes that a block may have on compute capability 7.5
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM and Triton as they lie in site-packages, unpacked; `GPU_WHEELS` names a folder where they do already."""
    if "GPU_WHEELS" in os.environ:
        return Path(os.environ["GPU_WHEELS"])
    fetched, unpacked = tmp_path_factory.mktemp("fetched"), tmp_path_factory.mktemp("unpacked")
    wanted = [f"{name}{pins('gpu-teacher')[name].specifier}" for name in ("vllm", "triton")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(fetched)]
    subprocess.run([*command, *wanted], check=True)
    for wheel in fetched.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        wheel.unlink()
    for tool in unpacked.glob("triton/backends/nvidia/bin/*"):
        tool.chmod(0o755)  # zipfile leaves permissions out
    return unpacked


@pytest.fixture(scope="session")
def vllm(wheels: Path) -> Path:
    return wheels / "vllm"


def assigned(file: Path, name: str) -> ast.expr:
    """The value that a module, or a class in it, gives to a name."""
    for node in ast.walk(ast.parse(file.read_text())):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets) and node.value is not None:
            return node.value
    raise AssertionError(f"{file} assigns no {name}")


def engine_arguments(vllm: Path) -> set[str]:
    """Fields of `EngineArgs`, and what `LLM` takes besides."""
    (engine,) = (n for n in ast.walk(tree(vllm, "engine/arg_utils.py")) if is_class(n, "EngineArgs"))
    (llm,) = (n for n in ast.walk(tree(vllm, "entrypoints/llm.py")) if is_class(n, "LLM"))
    (start,) = (n for n in llm.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    fields = {n.target.id for n in engine.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    return fields | {argument.arg for argument in (*start.args.args, *start.args.kwonlyargs)}


def tree(vllm: Path, name: str) -> ast.Module:
    return ast.parse((vllm / name).read_text())


def is_class(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.ClassDef) and node.name == name


def texts() -> str:
    """All that tells users what to type."""
    files = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("deploy/kaggle/*.md"),
        *ROOT.glob("conf/**/*.yaml"),
    ]
    return "\n".join(file.read_text() for file in files)


def test_every_engine_argument_that_we_name_is_there(vllm: Path) -> None:
    named = {match for match in re.findall(r"engine_args\.(\w+)", texts())}
    named |= {str(key) for key in OmegaConf.load(ROOT / "conf" / "scorer" / "vllm.yaml").engine_args}
    for node in ast.walk(ast.parse((ROOT / "teachers" / "scorers" / "vllm.py").read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "LLM":
            named |= {keyword.arg for keyword in node.keywords if keyword.arg}
    named |= {"dtype", "enable_lora", "max_loras", "max_lora_rank"}  # a dictionary in teachers/scorers/vllm.py
    assert "tensor_parallel_size" in named and "runner" in named
    assert named <= engine_arguments(vllm), named - engine_arguments(vllm)


def test_every_quantisation_that_we_name_is_there(vllm: Path) -> None:
    literal = assigned(vllm / "model_executor/layers/quantization/__init__.py", "QuantizationMethods")
    known = {node.value for node in ast.walk(literal) if isinstance(node, ast.Constant)}
    named = {*re.findall(r"engine_args\.quantization=([\w-]+)", texts())}
    assert named and named <= known, named - known
    assert "compressed-tensors" in known  # what exports are in
    assert "bitsandbytes" not in known  # as docs/teacher.md says


def test_the_plugin_finds_what_it_lifts(vllm: Path) -> None:
    model = vllm / "config/model.py"
    banned = assigned(model, "_FLOAT16_NOT_SUPPORTED_MODELS")
    assert isinstance(banned, ast.Dict)
    assert {ast.literal_eval(key) for key in banned.keys if key is not None} == {*BANNED}
    functions = {n.name: n for n in ast.walk(ast.parse(model.read_text())) if isinstance(n, ast.FunctionDef)}
    first = [argument.arg for argument in functions["_get_and_verify_dtype"].args.args[:2]]
    assert first == ["model_id", "config"]
    calls = [n for n in ast.walk(ast.parse(model.read_text())) if isinstance(n, ast.Call)]
    assert any(ast.unparse(call.func) == "_get_and_verify_dtype" for call in calls)  # looked up when it is called


@pytest.mark.parametrize(
    ("file", "scheme"),
    [
        ("compressed_tensors_w8a8_int8.py", "CompressedTensorsW8A8Int8"),
        ("compressed_tensors_wNa16.py", "CompressedTensorsWNA16"),
    ],
)
def test_turing_is_above_the_floor_of_our_formats(vllm: Path, file: str, scheme: str) -> None:
    (path,) = vllm.glob(f"model_executor/layers/quantization/compressed_tensors/schemes/{file}")
    (found,) = (n for n in ast.walk(ast.parse(path.read_text())) if is_class(n, scheme))
    (floor,) = (n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == "get_min_capability")
    assert [
        n.value.value for n in ast.walk(floor) if isinstance(n, ast.Return) and isinstance(n.value, ast.Constant)
    ] == [75]


def test_marlin_s_shapes_are_those_that_an_export_is_checked_with(vllm: Path) -> None:
    marlin = vllm / "model_executor/layers/quantization/utils/marlin_utils.py"
    groups = ast.literal_eval(assigned(marlin, "MARLIN_SUPPORTED_GROUP_SIZES"))
    assert {*groups} == {-1, *GROUPS}
    assert ast.literal_eval(assigned(marlin, "GPTQ_MARLIN_MIN_THREAD_N")) == TILE_OUTPUTS
    assert ast.literal_eval(assigned(marlin, "GPTQ_MARLIN_MIN_THREAD_K")) == TILE_INPUTS


def test_the_table_of_releases_says_whether_dense_layers_have_machine_code_for_turing(wheels: Path) -> None:
    (described,) = wheels.glob("vllm-*.dist-info")
    release = ".".join(described.name.split("-")[1].split(".")[:2])
    list_elf = [str(wheels / "triton/backends/nvidia/bin/cuobjdump"), "--list-elf"]
    libraries = [str(path) for path in (wheels / "vllm").glob("_C*.so")]
    listed = [
        subprocess.run([*list_elf, path], capture_output=True, text=True, check=True).stdout for path in libraries
    ]
    assert libraries and RELEASES[release] == any("sm_75" in elfs for elfs in listed), (release, listed)


def test_attention_with_gemma_2_s_heads_fits_a_t4_s_shared_memory(wheels: Path) -> None:
    script = Path(__file__).parent / "sm75_attention.py"
    environment = {**os.environ, "PYTHONPATH": str(wheels)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    taken = json.loads(done.stdout.splitlines()[-1])
    print(taken)
    assert len(taken) == 4 and all(0 < size <= SHARED_MEMORY for size in taken.values()), taken
