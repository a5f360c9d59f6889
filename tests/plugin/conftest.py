"""What the tests of the plugin stand on, built once for all processes of a run, or skipped with what is missing."""

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from vitslim.errors import MissingDependencyError
from vitslim.plugin import PluginBuild, build
from vitslim.plugin.launching import declare
from vitslim.plugin.libraries import SOURCES
from vitslim.plugin.runtime_compiler import cuda_headers
from vitslim.plugin.toolchain import find_nvcc

HERE = Path(__file__).parent
FAKE_NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  --list-gpu-code) printf 'sm_80\\nsm_90\\nsm_120\\n' ;;
  *) echo "$*" >> "$LOG"
     case "$*" in *BROKEN*) echo 'x.cpp(3): error: "Nv" is undefined' >&2; echo '1 error detected' >&2; exit 2 ;; esac
     while [ "$1" != "-o" ]; do shift; done
     echo made > "$2" ;;
esac
"""


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
def emulation(once: Callable[..., Path]) -> ctypes.CDLL:
    """The launcher and its kernels, compiled for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++)")
    try:
        headers = cuda_headers()
    except MissingDependencyError as error:
        pytest.skip(str(error))

    def make(folder: Path) -> None:
        shims = HERE / "emulation"
        command = [
            *(compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas"),
            # torch has brought a cudaLaunchKernel of its own into this process.
            *("-Wl,-Bsymbolic", f"-I{SOURCES}", f"-I{shims}", "-isystem", headers, "-include", shims / "cuda_on_cpu.h"),
            *("-x", "c++", SOURCES / "sparse_attention.cu", shims / "cuda_on_cpu.cpp", "-o", folder / "emulation.so"),
        ]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return declare(ctypes.CDLL(str(once("emulation", make) / "emulation.so")))


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
def built(once: Callable[..., Path]) -> PluginBuild:
    """Both libraries for one architecture; without TensorRT's headers the launcher's alone."""
    if find_nvcc() is None:
        pytest.skip("no nvcc")
    include = os.environ.get("VITSLIM_TENSORRT_INCLUDE")
    folder = once("built", lambda folder: build(folder, ["90"], include))
    return PluginBuild.model_validate_json((folder / "libvitslim_kernels.json").read_text())


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes down what it was asked; returns the file where."""
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text(FAKE_NVCC)
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("LOG", str(tmp_path / "commands"))
    return tmp_path / "commands"


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a CUDA toolkit."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("vitslim.plugin.toolchain._USUAL_PLACE", str(tmp_path / "nvcc"))
