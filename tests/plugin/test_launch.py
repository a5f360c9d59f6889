"""The kernel on a GPU, from a built library and from NVRTC, against the reference; and what it refuses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.plugin.test_kernel_arithmetic import ODD, exact, operands
from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.plugin import PluginBuild, build, launch
from vitslim.plugin.launching import _refusal
from vitslim.plugin.toolchain import find_nvcc

REAL = [(197, 64, 1, 1, 50), (197, 64, 1, 64, 50), (1025, 48, 1, 64, 200), (577, 128, 5, 32, 64)]


@pytest.fixture(scope="module")
def built_here(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], PluginBuild]:
    """The library for this GPU, built at the first call."""

    @cache
    def make() -> PluginBuild:
        capability = "".join(map(str, torch.cuda.get_device_capability()))
        return build(tmp_path_factory.mktemp("kernels"), [capability])

    return make


@pytest.fixture(params=["library", "nvrtc"])
def kernels(
    request: pytest.FixtureRequest,
    built_here: Callable[[], PluginBuild],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> str:
    """Where ``launch`` takes the kernel from."""
    if request.param == "library":
        if find_nvcc() is None:
            pytest.skip("no nvcc")
        monkeypatch.setenv("VITSLIM_KERNELS_LIBRARY", str(built_here().kernels))
    else:
        monkeypatch.delenv("VITSLIM_KERNELS_LIBRARY", raising=False)
        monkeypatch.setenv("VITSLIM_CACHE", str(tmp_path))
    return request.param


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [*ODD, *REAL], ids=lambda sizes: "n{}-e{}-prefix{}-tile{}-k{}".format(*sizes))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_the_gpu_agrees_with_the_definition(kernels: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    _, width, prefix, tile, _ = sizes
    parts = operands(*sizes, dtype)
    got = launch(*(part.cuda() for part in parts), tile=tile, prefix=prefix, scale=width**-0.5)
    wanted = exact(*parts, tile, prefix, width**-0.5)
    # As on the CPU, but for the GPU's 2^x, good to two units in the last place of fp32.
    tolerance = max(torch.finfo(dtype).eps / 2, 4e-6)
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=tolerance, atol=8e-6)


@pytest.mark.gpu
def test_the_kernel_runs_on_the_current_stream(kernels: str) -> None:
    query, key, value, kept = (part.cuda() for part in operands(197, 64, 1, 64, 50))
    wanted = launch(query, key, value, kept, tile=64, prefix=1, scale=0.125)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # The operands come late on this stream; a kernel on another would read what is there before.
        late = [torch.zeros_like(part) for part in (query, key, value)]
        torch.cuda._sleep(50_000_000)
        for place, part in zip(late, (query, key, value), strict=True):
            place.copy_(part)
        got = launch(*late, kept, tile=64, prefix=1, scale=0.125)
    stream.synchronize()
    assert torch.equal(got, wanted)


@pytest.mark.gpu
def test_a_cuda_graph_holds_the_kernel(kernels: str) -> None:
    query, key, value, kept = (part.cuda() for part in operands(53, 64, 5, 40, 7))
    wanted = launch(query, key, value, kept, tile=40, prefix=5, scale=0.125)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = launch(query, key, value, kept, tile=40, prefix=5, scale=0.125)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, wanted)


@pytest.mark.gpu
def test_a_thread_of_its_own_can_start_the_kernel(kernels: str) -> None:
    query, key, value, kept = (part.cuda() for part in operands(53, 64, 5, 40, 7))
    wanted = launch(query, key, value, kept, tile=40, prefix=5, scale=0.125)
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(launch, query, key, value, kept, tile=40, prefix=5, scale=0.125).result()
        torch.cuda.synchronize()
    assert torch.equal(got, wanted)


@pytest.mark.gpu
def test_key_sets_that_do_not_fit_are_refused(kernels: str) -> None:
    query, key, value, kept = (part.cuda() for part in operands(17, 8, 1, 1, 5))
    with pytest.raises(ConfigError, match=r"wanted ceil\(\(n - prefix\) / tile\) key sets"):
        launch(query, key, value, kept, tile=2, prefix=1, scale=1.0)


def test_tensors_on_a_cpu_are_refused() -> None:
    query, key, value, kept = operands(17, 8, 1, 1, 5)
    with pytest.raises(ConfigError, match="tensors on cpu; the CUDA kernel wants all on one GPU"):
        launch(query, key, value, kept, tile=1, prefix=1, scale=1.0)


def test_an_unfit_gpu_is_distinguished_from_unfit_sizes() -> None:
    assert isinstance(_refusal("no kernel image", 209, "query"), MissingDependencyError)
    assert isinstance(_refusal("invalid argument", 1, "query"), ConfigError)
    assert "did not start: launch failure (query)" in str(_refusal("launch failure", 719, "query"))
