"""The plugin's library in TensorRT's plugin registry, without a GPU: the lean runtime has a real one."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitslim.kernels import onnx_forms, sparse_attention
from vitslim.plugin import PluginBuild
from vitslim.plugin.libraries import SOURCES
from vitslim.plugin.toolchain import cuda_headers, required_compiler

FLOATS = {"0": "0", "1": "1", "7": "7"}  # TensorRT's numbers of fp32, fp16, bf16
IN_PYTHON = """
import sys
import numpy as np
import tensorrt_lean_bindings as trt
library, tile, prefix, scale = sys.argv[1], *map(float, sys.argv[2:])
trt.Logger(trt.Logger.ERROR)
registry = trt.get_plugin_registry()
registry.load_library(library)
creator = registry.get_creator("SparseAttention", "1", "vitslim")
kinds = trt.PluginFieldType
fields = [
    trt.PluginField("tile", np.array([tile], np.int32), kinds.INT32),
    trt.PluginField("prefix", np.array([prefix], np.int32), kinds.INT32),
    trt.PluginField("scale", np.array([scale], np.float32), kinds.FLOAT32),
]
print(*(field.name for field in creator.field_names))
plugin = creator.create_plugin("layer", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
print(core.plugin_name, core.plugin_version, core.plugin_namespace)
print(plugin.get_capability_interface(trt.PluginCapabilityType.BUILD).timing_cache_id)
"""


class Attention(torch.nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> Tensor:
        return sparse_attention(query, key, value, kept, tile=16, prefix=1, scale=0.17)


@pytest.fixture(scope="session")
def node_attributes() -> dict[str, Any]:
    """Those of a node as the ONNX export writes it."""
    onnx = pytest.importorskip("onnx", reason="no onnx: pip install 'vitslim[onnx]'")
    pytest.importorskip("onnxscript", reason="no onnxscript: pip install 'vitslim[onnx]'")
    query = torch.zeros(1, 2, 65, 64)
    kept = torch.zeros(1, 2, 4, 5, dtype=torch.int64)
    program = torch.onnx.export(
        Attention().eval(),
        (query, query, query, kept),
        dynamo=True,
        custom_translation_table=dict(onnx_forms(nodes=True)),
        verbose=False,
    )
    assert program is not None
    (node,) = [node for node in program.model_proto.graph.node if node.domain == "vitslim"]
    assert node.op_type == "SparseAttention"
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.fixture(scope="session")
def plugins(headers: Path, built: PluginBuild) -> Path:
    assert built.plugins is not None, headers
    return built.plugins


@pytest.fixture(scope="session")
def check(once: Callable[..., Path], headers: Path) -> Path:
    """The program that plays builder and engine."""
    source = Path(__file__).parent / "registry_check.cpp"

    def make(folder: Path) -> None:
        includes = [f"-I{SOURCES}", f"-isystem{cuda_headers()}", f"-isystem{headers}"]
        command = [required_compiler(), "-std=c++17", *includes, source, "-ldl", "-o", folder / "check"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return once("registry_check", make) / "check"


def answers(check: Path, library: Path, tensorrt: Path | str, tile: int, prefix: int, scale: float) -> dict[str, Any]:
    words = [check, library, tensorrt, tile, prefix, scale.hex()]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.partition("=") for line in done.stdout.splitlines()]
    said = {name: value for name, _, value in lines if name != "error"}
    return {**said, "errors": done.stderr.splitlines() + [value for name, _, value in lines if name == "error"]}


@pytest.mark.parametrize("registry", ["none", "lean"])
def test_a_builder_gets_the_right_answers(
    plugins: Path, check: Path, request: pytest.FixtureRequest, registry: str
) -> None:
    tensorrt = "-" if registry == "none" else request.getfixturevalue("lean_library")
    said = answers(check, plugins, tensorrt, 64, 1, 0.125)
    assert said["core"] == "SparseAttention 1 vitslim"
    assert (said["outputs"], said["workspace"], said["shapes"]) == ("1", "0", "0:1")
    assert said["timing"] == said["metadata"]
    assert re.fullmatch("tile=64,prefix=1,scale=0x1p-3,kernels=[0-9a-f]{16}", said["timing"])
    # query, key, value, kept, mixed in that type; kept as int32, mixed in another layout; type of the output
    for number in FLOATS:
        assert said[f"formats of type {number}"] == f"11101 10 0:{number}"
    # Not an input type: the query's position answers for the rest.
    assert said["formats of type 2"].startswith("0")
    assert said["formats of type 3"].startswith("0")
    assert (said["fits"], said["dynamic"]) == ("0", "0")
    assert (said["too wide"], said["wrong tiles"], said["wrong heads"]) == ("1", "1", "1")
    assert (said["missing"], said["mistyped"], said["out of range"]) == ("1", "1", "1")
    assert any("head width 129; the kernels inside take 64, 72" in line for line in said["errors"])
    if not torch.cuda.is_available():
        # A change of shapes loads the kernel.
        assert said["loads"] == "100"
        assert any("libcuda.so.1, is not here" in line for line in said["errors"])
    assert any("attribute 'scale' is missing" in line for line in said["errors"])


def test_an_exported_node_survives_clone_engine_and_context(
    plugins: Path, check: Path, lean_library: Path, node_attributes: dict[str, Any]
) -> None:
    assert set(node_attributes) == {"tile", "prefix", "scale", "plugin_namespace", "plugin_version"}
    assert node_attributes["plugin_namespace"] == b"vitslim"
    assert node_attributes["plugin_version"] == b"1"
    tile, prefix, scale = (node_attributes[name] for name in ("tile", "prefix", "scale"))
    said = answers(check, plugins, lean_library, tile, prefix, scale)
    assert said["loaded"] == "1"
    # Type 5 is int32, type 1 fp32; the scale in hexadecimal has all its digits.
    assert said["declared"] == "tile:5:1 prefix:5:1 scale:1:1"
    assert said["serialised"] == "tile:5:1:16 prefix:5:1:1 scale:1:1:0x1.5c28f6p-3"
    assert float.fromhex("0x1.5c28f6p-3") == scale
    assert said["clone"] == said["attached"] == said["serialised"]


def test_the_registry_of_the_python_bindings_finds_the_creator(
    plugins: Path, lean_library: Path, node_attributes: dict[str, Any]
) -> None:
    if find_spec("tensorrt_lean_bindings") is None:
        pytest.skip("no TensorRT lean bindings: pip install 'vitslim[lean]'")
    given = [str(node_attributes[name]) for name in ("tile", "prefix", "scale")]
    done = subprocess.run(
        [sys.executable, "-c", IN_PYTHON, plugins, *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *found, described = done.stdout.splitlines()
    assert found == ["tile prefix scale", "SparseAttention 1 vitslim"]
    assert re.fullmatch(r"tile=16,prefix=1,scale=0x1\.5c28f6p-3,kernels=[0-9a-f]{16}", described)
