"""The plugin without a tool chain: NVRTC's kernels, and their registration with TensorRT's Python plugins."""

import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.plugin import KernelSpec, compile_kernel, register_ahead_of_time
from vitslim.plugin.ahead_of_time import kernel_producer
from vitslim.plugin.runtime_compiler import ENTRY, nvrtc_version

QUERY = KernelSpec("fp16", width=64, tile=1, prefix=1, scale=0.125)
TILE = KernelSpec("bf16", width=48, tile=64, prefix=1, scale=0.17)
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


def need_nvrtc() -> None:
    if nvrtc_version() is None:
        pytest.skip("no NVRTC: it comes with torch's CUDA builds")


@pytest.mark.parametrize("spec", [QUERY, TILE], ids=["query", "tile"])
def test_nvrtc_compiles_the_kernel_without_a_gpu(spec: KernelSpec) -> None:
    need_nvrtc()
    kernel = compile_kernel(spec, "90")
    assert kernel.image.startswith(b"\x7fELF")
    assert ENTRY.encode() in kernel.image
    assert (kernel.threads, kernel.queries_per_block) == ((128, 4) if spec is QUERY else (256, 32))
    # Each tile of 64 takes two blocks of 32 queries, the class token one.
    assert kernel.blocks_per_head(tiles=4, tile=spec.tile, prefix=1) == (5 if spec is QUERY else 9)


def test_ptx_serves_all_later_gpus() -> None:
    need_nvrtc()
    kernel = compile_kernel(TILE, "80", as_ptx=True)
    assert b".target sm_80" in kernel.image
    assert b".visible .entry " + ENTRY.encode() in kernel.image


def test_an_architecture_that_nvrtc_does_not_know_is_refused() -> None:
    need_nvrtc()
    with pytest.raises(ConfigError, match=r"architecture '52': this NVRTC compiles for .*90"):
        compile_kernel(QUERY, "52")


@pytest.mark.parametrize("wrong", [{"width": 0}, {"width": 129}, {"tile": 0}, {"prefix": -1}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    given: dict[str, Any] = {"precision": "fp32", "width": 8, "tile": 1, "prefix": 0, "scale": 1.0, **wrong}
    with pytest.raises(ConfigError, match="width 1 to 128, tile from 1, prefix from 0"):
        compile_kernel(KernelSpec(**given), "90")


def test_tensorrt_gets_kernel_launch_and_scalars() -> None:
    need_nvrtc()
    plugins = SimpleNamespace(
        KernelLaunchParams=SimpleNamespace, SymIntExprs=lambda count: [None] * count, SymInt32=int
    )
    types = SimpleNamespace(FLOAT="float", HALF="half", BF16="bf16")
    produce = kernel_producer(SimpleNamespace(DataType=types), plugins, "90")
    wide = SimpleNamespace(dtype="half", shape=(2, 3, 197, 64), shape_expr=(2, 3, 197, 64))
    kept = SimpleNamespace(shape_expr=(2, 3, 4, 50))
    entry, image, launch, scalars = produce(wide, wide, wide, kept, 64, 1, 0.125, (wide,), 0)
    assert (entry, image[:4]) == (ENTRY, b"\x7fELF")
    assert (launch.grid_x, launch.block_x) == (2 * 3 * (1 + 4 * 2), 256)
    assert scalars == [197, 4, 50]
    wide.dtype = "int8"
    with pytest.raises(ConfigError, match="query is int8; the kernel takes float, half, bf16"):
        produce(wide, wide, wide, kept, 64, 1, 0.125, (wide,), 0)


def test_without_tensorrt_the_error_names_the_extra() -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is here")
    with pytest.raises(MissingDependencyError, match=r"pip install 'vitslim\[tensorrt\]'"):
        register_ahead_of_time()


def test_tensorrts_own_code_takes_the_registration_and_makes_the_plugin() -> None:
    if find_spec("tensorrt_lean_bindings") is None:
        pytest.skip("no TensorRT lean runtime: pip install 'vitslim[lean]'")
    need_nvrtc()
    done = subprocess.run([sys.executable, "-c", WITH_LEAN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "True False",
        "tile prefix scale",
        "{'tile': 8, 'prefix': 1, 'scale': 0.125}",
    ]
