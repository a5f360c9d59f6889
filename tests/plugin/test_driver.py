"""Kernels started through CUDA's driver, here one that runs them on the CPU: arguments, grid, numbers, refusals."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.plugin.test_kernel_arithmetic import exact, operands
from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.plugin import CompiledKernel, KernelSpec, compile_kernel
from vitslim.plugin.driver import CudaError, Driver
from vitslim.plugin.launching import _check_sizes, launch_compiled
from vitslim.plugin.libraries import SOURCES
from vitslim.plugin.runtime_compiler import compile_for_gpu, cuda_headers, kernel_macros, nvrtc_version

SHIMS = Path(__file__).parent / "emulation"
# Two images of two heads, of which no size is a multiple of anything; one key set per query, and one per tile.
CASES = {
    "query": (KernelSpec("fp32", width=17, tile=1, prefix=2, scale=0.3), 37, 33),
    "tile": (KernelSpec("fp16", width=64, tile=40, prefix=5, scale=0.125), 53, 7),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, once: Callable[..., Path]) -> tuple[Driver, KernelSpec, int, int]:
    """A driver with the kernel of one case, as a CPU runs it."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++)")
    if nvrtc_version() is None:
        pytest.skip("no NVRTC: it comes with torch's CUDA builds")
    spec, tokens, keys = CASES[request.param]

    def make(folder: Path) -> None:
        command = [
            *(compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Wl,-Bsymbolic"),
            *(f"-D{name}={value}" for name, value in kernel_macros(spec).items()),
            *(f"-I{SOURCES}", f"-I{SHIMS}", "-isystem", cuda_headers(), "-include", SHIMS / "cuda_on_cpu.h"),
            *(SHIMS / "driver_on_cpu.cpp", SHIMS / "cuda_on_cpu.cpp", "-o", folder / "driver.so"),
        ]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    library = ctypes.CDLL(str(once(f"driver-{request.param}", make) / "driver.so"))
    return Driver(library), spec, tokens, keys


def test_a_kernel_of_nvrtc_gets_its_arguments_and_serves_every_query(case) -> None:
    driver, spec, tokens, keys = case
    kernel = compile_kernel(spec, "90")
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[spec.precision]
    one = operands(tokens, spec.width, spec.prefix, spec.tile, keys, dtype)
    query, key, value, kept = (torch.cat([part, part.flip(1)]) for part in one)
    mixed = torch.full_like(query, float("nan"))
    driver.enter(0)
    function = driver.load(kernel)
    launch_compiled(driver, kernel, function, (query, key, value, kept, mixed), spec, stream=0)
    wanted = exact(query, key, value, kept, spec.tile, spec.prefix, spec.scale)
    torch.testing.assert_close(mixed.double(), wanted, rtol=max(torch.finfo(dtype).eps / 2, 2e-6), atol=4e-6)


def test_a_thread_without_a_context_gets_that_of_torch_once(case) -> None:
    driver, *_ = case
    for _ in range(2):
        driver.enter(0)
    assert driver._library.contexts_entered() == 1


def test_a_refusal_comes_back_in_cudas_words(case) -> None:
    driver, spec, *_ = case
    with pytest.raises(CudaError, match="no kernel image") as caught:
        driver.load(CompiledKernel("vitslim_sparse_attention_kernel", b"neither cubin nor PTX", 128, 4))
    assert caught.value.status == 209
    with pytest.raises(CudaError, match="unknown error"):
        driver.load(CompiledKernel("another kernel", compile_kernel(spec, "90").image, 128, 4))


@pytest.mark.parametrize(
    ("tokens", "keys", "tiles", "tile", "prefix"),
    [(10, 0, 9, 1, 1), (10, 11, 9, 1, 1), (10, 4, 3, 1, 1), (10, 4, 9, 0, 1), (10, 4, 9, 1, 11), (10, 4, 9, 1, -1)],
)
def test_sizes_that_do_not_fit_are_refused_as_the_library_refuses_them(
    tokens: int, keys: int, tiles: int, tile: int, prefix: int
) -> None:
    kept = torch.zeros(1, 1, tiles, keys, dtype=torch.int32)
    with pytest.raises(ConfigError, match="does not take query"):
        _check_sizes(torch.zeros(1, 1, tokens, 8), kept, tile, prefix)


def test_a_gpu_of_tomorrow_gets_ptx_and_one_of_yesterday_a_reason() -> None:
    if nvrtc_version() is None:
        pytest.skip("no NVRTC: it comes with torch's CUDA builds")
    spec = CASES["query"][0]
    assert compile_for_gpu(spec, "90").image.startswith(b"\x7fELF")
    assert b".target sm_" in compile_for_gpu(spec, "999").image
    with pytest.raises(MissingDependencyError, match="the GPU is 50"):
        compile_for_gpu(spec, "50")
