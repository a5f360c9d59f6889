"""What the tests of the plugin stand on, built once for all processes of a run, or skipped with what is missing."""

import fcntl
import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from vitslim.errors import MissingDependencyError
from vitslim.plugin import PluginBuild, TileKernel, TileSpec, build
from vitslim.plugin.cubins import require_triton
from vitslim.plugin.toolchain import cuda_headers, required_compiler

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run ``make(folder)`` in one process of the run; the others wait and use its folder."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def call(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "done").exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                (folder / "done").touch()
        return folder

    return call


@pytest.fixture(scope="session")
def tools() -> Path:
    """What a build takes, or skipped with what is missing; the folder of CUDA's headers."""
    try:
        required_compiler()
        require_triton()
        return cuda_headers()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def driver(once: Callable[..., Path], tools: Path) -> Path:
    """A library under the name of CUDA's driver, which hands launches to whoever began them."""

    def make(folder: Path) -> None:
        source = HERE / "emulation" / "driver.cpp"
        command = [
            *(required_compiler(), "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", "-isystem", tools),
            *("-Wl,-soname,libcuda.so.1", source, "-o", folder / "libcuda.so.1"),
        ]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return once("driver", make) / "libcuda.so.1"


@pytest.fixture(scope="session")
def headers() -> Path:
    """TensorRT's headers."""
    folder = os.environ.get("VITSLIM_TENSORRT_INCLUDE")
    if not folder:
        pytest.skip("no TensorRT headers: set VITSLIM_TENSORRT_INCLUDE")
    return Path(folder)


@pytest.fixture(scope="session")
def lean_library() -> Path:
    """The library of TensorRT's lean runtime, which has a plugin registry."""
    spec = find_spec("tensorrt_lean_libs")
    if spec is None or spec.origin is None:
        pytest.skip("no TensorRT lean runtime: pip install 'vitslim[lean]'")
    return next(Path(spec.origin).parent.glob("libnvinfer_lean.so.*"))


@pytest.fixture(scope="session")
def built(once: Callable[..., Path], tools: Path) -> PluginBuild:
    """Both libraries for one architecture and two widths; without TensorRT's headers the launcher's alone."""
    include = os.environ.get("VITSLIM_TENSORRT_INCLUDE")
    folder = once("built", lambda folder: build(folder, ["90"], include, [64, 72]))
    return PluginBuild.model_validate_json((folder / "libvitslim_kernels.json").read_text())


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for what Triton takes a minute to compile."""

    def compiled(specs: list[TileSpec], *, ptx: bool = False) -> list[TileKernel]:
        return [TileKernel(spec, spec.tile, 128, 20992, 64, 0, "none", 2, ptx, b"code") for spec in specs]

    monkeypatch.setattr("vitslim.plugin.compiling.compile_tiles", compiled)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a C++ compiler."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
