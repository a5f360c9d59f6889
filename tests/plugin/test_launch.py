"""The launcher of a built library: with a stand-in for CUDA's driver, and on a GPU, against the reference."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.closeness import interprets
from vitslim.errors import CheckFailedError, ConfigError, MissingDependencyError
from vitslim.kernels.sparse_attention import kept_mask, tile_count
from vitslim.plugin import PluginBuild, build, launch
from vitslim.plugin.launching import _refusal

# Tokens, head width, prefix, tile, keys: tokens and key counts are multiples of nothing.
SIZES = [(53, 64, 5, 40, 7), (70, 64, 1, 16, 33), (37, 72, 0, 17, 37), (20, 72, 20, 64, 1)]
REAL = [(197, 64, 1, 64, 50), (1025, 72, 1, 64, 200), (577, 64, 5, 32, 64)]
ROOT = Path(__file__).parents[2]


def operands(
    tokens: int, width: int, prefix: int, tile: int, keys: int, dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    query, key, value = (torch.randn(1, 2, tokens, width, generator=generator).to(dtype) for _ in range(3))
    tiles = tile_count(tokens - prefix, tile)
    kept = torch.rand(1, 2, tiles, tokens, generator=generator).argsort(-1)[..., :keys].int().contiguous()
    return query, key, value, kept


def exact(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, tile: int, prefix: int, scale: float) -> Tensor:
    scores = query.double() @ key.double().transpose(-2, -1) * scale
    seen = kept_mask(kept.long(), key.shape[2], tile, prefix)
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value.double()


@pytest.fixture(scope="module")
def on_cpu(built: PluginBuild, driver: Path) -> Callable[..., list[dict[str, Any]]]:
    """Launch cases on a GPU of some architecture that a CPU plays."""
    if torch.cuda.is_available():
        pytest.skip("a GPU and its driver are here")
    if not interprets():
        pytest.skip("Triton's interpreter is not to be relied on before 3.9")

    def call(*cases: dict[str, Any]) -> list[dict[str, Any]]:
        request = json.dumps({"library": str(built.kernels), "cases": cases})
        command = [sys.executable, "-m", "tests.plugin.on_cpu", str(driver), request]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def case_of(sizes: tuple[int, ...], precision: str, capability: int = 90, **more: Any) -> dict[str, Any]:
    names = ("tokens", "width", "prefix", "tile", "keys")
    known = {"precision": precision, "capability": capability, "compiled_for": capability}
    return {**dict(zip(names, sizes, strict=True)), **known, **more}


def test_the_launcher_starts_the_right_code_with_the_right_arguments(on_cpu) -> None:
    cases = [case_of(sizes, precision) for sizes in SIZES for precision in ("fp32", "fp16", "bf16")]
    # All twice: what is loaded stays loaded.
    answers = on_cpu(*cases, *cases)
    assert answers[len(cases) - 1]["loads"] == answers[-1]["loads"]
    for case, found in zip([*cases, *cases], answers, strict=True):
        assert "error" not in found, (case, found)
        assert {name: found[name] for name in ("grid", "block", "same code", "hidden")} == {
            **dict.fromkeys(("grid", "block", "same code"), True),
            "hidden": [None, None],
        }, case
        roundings = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 2e-2}
        assert found["difference"] < roundings[case["precision"]], case


def test_an_architecture_that_is_not_inside_runs_ptx(on_cpu) -> None:
    for found in on_cpu(*(case_of(SIZES[0], "fp16", one, compiled_for=80) for one in (80, 86, 87, 103, 121))):
        assert (found["same code"], found["block"]) == (True, True)
        assert found["difference"] < 2e-3


def test_a_driver_older_than_the_code_runs_ptx(on_cpu) -> None:
    cases = [case_of(SIZES[0], precision, 90, compiled_for=80, is_old=True) for precision in ("fp16", "bf16")]
    for found in on_cpu(*cases, *cases):
        assert (found["same code"], found["block"]) == (True, True)
        assert found["difference"] < 2e-2


def test_an_old_gpu_and_a_thread_without_a_context_are_refused(on_cpu) -> None:
    old, lost = on_cpu(case_of(SIZES[0], "fp16", 75, compiled_for=90), case_of(SIZES[0], "fp16", 0, compiled_for=90))
    assert old["error"].startswith("MissingDependencyError: the CUDA kernel cannot run here (in the driver's words)")
    assert lost["error"].startswith("CheckFailedError: the CUDA kernel did not start: in the driver's words")


def test_a_width_that_is_not_inside_is_refused(on_cpu) -> None:
    (found,) = on_cpu(case_of((53, 48, 5, 40, 7), "fp16"))
    assert found["error"].startswith("ConfigError: the CUDA kernel does not take query (2, 3, 53, 48)")
    assert "a head width of 64, 72" in found["error"]


@pytest.fixture(scope="module")
def built_here(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], PluginBuild]:
    """The library for this GPU, built at the first call."""

    @cache
    def make() -> PluginBuild:
        capability = "".join(map(str, torch.cuda.get_device_capability()))
        return build(tmp_path_factory.mktemp("kernels"), [capability], widths=[64, 72])

    return make


@pytest.fixture
def kernels(built_here: Callable[[], PluginBuild], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``launch`` takes the kernel from."""
    monkeypatch.setenv("VITSLIM_KERNELS_LIBRARY", str(built_here().kernels))


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [*SIZES, *REAL], ids=lambda sizes: "n{}-e{}-prefix{}-tile{}-k{}".format(*sizes))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_the_gpu_agrees_with_the_definition(kernels: None, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    _, width, prefix, tile, _ = sizes
    parts = operands(*sizes, dtype)
    got = launch(*(part.cuda() for part in parts), tile=tile, prefix=prefix, scale=width**-0.5)
    wanted = exact(*parts, tile, prefix, width**-0.5)
    # Weights and result are rounded to the type, once each.
    tolerance = max(2 * torch.finfo(dtype).eps, 8e-6)
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.gpu
def test_the_kernel_runs_on_the_current_stream(kernels: None) -> None:
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
def test_a_cuda_graph_holds_the_kernel(kernels: None) -> None:
    query, key, value, kept = (part.cuda() for part in operands(53, 64, 5, 40, 7))
    wanted = launch(query, key, value, kept, tile=40, prefix=5, scale=0.125)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = launch(query, key, value, kept, tile=40, prefix=5, scale=0.125)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, wanted)


@pytest.mark.gpu
def test_a_thread_of_its_own_can_start_the_kernel(kernels: None) -> None:
    query, key, value, kept = (part.cuda() for part in operands(53, 64, 5, 40, 7))
    wanted = launch(query, key, value, kept, tile=40, prefix=5, scale=0.125)
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(launch, query, key, value, kept, tile=40, prefix=5, scale=0.125).result()
        torch.cuda.synchronize()
    assert torch.equal(got, wanted)


@pytest.mark.gpu
def test_key_sets_that_do_not_fit_are_refused(kernels: None) -> None:
    query, key, value, kept = (part.cuda() for part in operands(53, 64, 5, 40, 7))
    with pytest.raises(ConfigError, match=r"wanted ceil\(\(n - prefix\) / tile\) key sets"):
        launch(query, key, value, kept, tile=16, prefix=5, scale=1.0)


def test_tensors_on_a_cpu_are_refused() -> None:
    query, key, value, kept = operands(53, 64, 5, 40, 7)
    with pytest.raises(ConfigError, match="tensors on cpu; the CUDA kernel wants all on one GPU"):
        launch(query, key, value, kept, tile=40, prefix=5, scale=1.0)


def test_an_unfit_gpu_is_distinguished_from_unfit_sizes() -> None:
    assert isinstance(_refusal("no kernel image", 209, "query", "64"), MissingDependencyError)
    assert isinstance(_refusal("invalid argument", 1, "query", "64"), ConfigError)
    failure = _refusal("launch failure", 719, "query", "64")
    assert isinstance(failure, CheckFailedError)
    assert "did not start: launch failure (query)" in str(failure)
