"""The plugin without TensorRT's headers: Triton's PTX, and its registration with TensorRT's Python plugins."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.plugin import TileSpec, compile_tiles, register_ahead_of_time
from vitslim.plugin.ahead_of_time import kernel_producer
from vitslim.plugin.cubins import baked_kernel

pytest.importorskip("triton")
from vitslim.kernels.triton.compiling import parameters_of
from vitslim.kernels.triton.tile_attention import packed_form, tile_attention_kernel

FIXED = (("tile", 64), ("prefix", 1), ("scale", 0.125))
# The lean bindings have TensorRT's own code for Python plugins, but no types of the builder, which that code names in
# its annotations; stand-ins take their place.
WITH_LEAN = """
import sys
import numpy as np
import tensorrt_lean_bindings as trt


def stand_in(name):
    if name.startswith("__"):
        raise AttributeError(name)
    setattr(trt, name, type(name, (), {"LINEAR": 0}))
    return getattr(trt, name)


trt.__getattr__ = stand_in
sys.modules["tensorrt"] = trt
from vitslim.plugin import register_ahead_of_time

print(register_ahead_of_time("90"), register_ahead_of_time("90"))
creator = trt.get_plugin_registry().get_creator("SparseAttention", "1", "vitslim")
print(*(field.name for field in creator.field_names))
kinds = trt.PluginFieldType
fields = [
    trt.PluginField("tile", np.array([8], np.int32), kinds.INT32),
    trt.PluginField("prefix", np.array([1], np.int32), kinds.INT32),
    trt.PluginField("scale", np.array([0.125], np.float32), kinds.FLOAT32),
]
request = trt.QuickPluginCreationRequest.STRICT_AOT
plugin = creator.create_plugin(
    "SparseAttention", "vitslim", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD, request
)
print(plugin.attrs)
"""


@pytest.mark.parametrize(
    ("capability", "precision", "width", "ptx"),
    [
        *((80, "bf16", 72, "8.0"), (90, "bf16", 72, "8.0"), (100, "bf16", 72, "8.6"), (120, "bf16", 72, "8.7")),
        *((90, "fp32", 64, "8.0"), (100, "fp32", 128, "8.6")),
    ],
)
def test_a_baked_kernel_is_ptx_that_takes_the_arguments_of_its_source(
    tools: Path, capability: int, precision: str, width: int, ptx: str
) -> None:
    kernel = baked_kernel(TileSpec(capability, precision, width, 64, FIXED))
    text = kernel.code.decode()
    # query, key, value, kept, eight strides, heads, tokens, keys, tiles, mixed
    assert len(parameters_of(text, kernel.entry)) == 17
    assert kernel.hidden == 0
    assert kernel.shared_bytes <= 48 * 1024
    # No newer than the oldest driver of this architecture that there can be.
    assert f".version {ptx}" in text
    assert kernel.queries == (16 if precision == "fp32" else 64)
    assembler = Path(require_assembler(capability))
    command = [assembler, f"-arch=sm_{capability}{'a' if capability >= 90 else ''}", "-", "-o", "/dev/null"]
    done = subprocess.run([str(word) for word in command], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def require_assembler(capability: int) -> str:
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")
    return compiler.get_ptxas(capability).path


def test_tensorrt_gets_kernel_launch_and_scalars(tools: Path) -> None:
    plugins = SimpleNamespace(
        KernelLaunchParams=SimpleNamespace, SymIntExprs=lambda count: [None] * count, SymInt32=int
    )
    types = SimpleNamespace(FLOAT="float", HALF="half", BF16="bf16")
    produce = kernel_producer(SimpleNamespace(DataType=types), plugins, "90")
    wide = SimpleNamespace(dtype="half", shape=(2, 3, 197, 64), shape_expr=(2, 3, 197, 64))
    kept = SimpleNamespace(shape_expr=(2, 3, 4, 50))
    entry, code, launch, scalars = produce(wide, wide, wide, kept, 64, 1, 0.125, (wide,), 0)
    assert (entry, code.decode().count(f".entry {entry}(")) == ("tile_attention_kernel", 1)
    (kernel,) = compile_tiles([TileSpec(90, "fp16", 64, 64, FIXED)], ptx=True)
    # Each tile of 64 takes a program, the class token one.
    assert (launch.grid_x, launch.block_x, launch.shared_mem) == (2 * 3 * (1 + 4), 128, kernel.shared_bytes)
    assert scalars == [3 * 197 * 64, 197 * 64] * 4 + [3, 197, 50, 4]
    wide.dtype = "int8"
    with pytest.raises(ConfigError, match="query is int8; the kernel takes float, half, bf16"):
        produce(wide, wide, wide, kept, 64, 1, 0.125, (wide,), 0)


def test_the_order_of_the_scalars_is_that_of_the_kernel() -> None:
    form = packed_form("fp16", 64, 64, dict(FIXED))
    names = [name for name in tile_attention_kernel.arg_names if name in form.types]
    strides = [f"{part}_{axis}" for part in ("query", "key", "value", "out") for axis in ("image", "head")]
    counts = ["heads", "tokens", "keys_kept", "tiles"]
    assert names == ["query", "key", "value", "kept", *strides, *counts, "out"]


def test_without_tensorrt_the_error_names_the_extra() -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is here")
    with pytest.raises(MissingDependencyError, match=r"pip install 'vitslim\[tensorrt\]'"):
        register_ahead_of_time()


def test_tensorrts_own_code_takes_the_registration_and_makes_the_plugin(tools: Path) -> None:
    if find_spec("tensorrt_lean_bindings") is None:
        pytest.skip("no TensorRT lean runtime: pip install 'vitslim[lean]'")
    done = subprocess.run([sys.executable, "-c", WITH_LEAN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "True False",
        "tile prefix scale",
        "{'tile': 8, 'prefix': 1, 'scale': 0.125}",
    ]
