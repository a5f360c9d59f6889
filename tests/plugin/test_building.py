"""Building with nvcc: what it makes, and what it says when it cannot."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError
from vitslim.plugin import ARCHITECTURES, PluginBuild, build, info, kernels_library, plugin_library
from vitslim.plugin.compiling import tensorrt_version
from vitslim.plugin.launching import declare
from vitslim.plugin.toolchain import checked_architectures, find_nvcc, required_nvcc, useful_line

TENSORRT_10 = "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 12\n#define NV_TENSORRT_PATCH 0\n"
TENSORRT_11 = (
    "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n#define TRT_PATCH_ENTERPRISE 0\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE\n"
    "#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE\n"
)
REFUSED_BEFORE_A_GPU_IS_NEEDED = 1


def include_folder(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "NvInferRuntime.h").touch()
    (folder / "NvInferVersion.h").write_text(version)
    return folder


@pytest.mark.slow  # half a minute of nvcc
def test_the_launcher_is_called_without_a_gpu(built: PluginBuild) -> None:
    library = declare(ctypes.CDLL(str(built.kernels)))
    assert library.vitslim_kernels_version() == b"1.0"
    numbers = [0, 1, 1, 10, 8, 9, 4, 1, 1]
    width_0 = [*numbers[:4], 0, *numbers[5:]]
    assert library.vitslim_sparse_attention(*[None] * 5, *width_0, 1.0, None) == REFUSED_BEFORE_A_GPU_IS_NEEDED
    assert b"invalid argument" in library.vitslim_error_text(REFUSED_BEFORE_A_GPU_IS_NEEDED)


@pytest.mark.slow  # half a minute of nvcc
def test_the_libraries_export_their_interface_and_need_nothing_of_tensorrt(built: PluginBuild) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    interface = {"vitslim_sparse_attention", "vitslim_sparse_attention_by", "vitslim_error_text"}
    interface.add("vitslim_kernels_version")
    assert exported(built.kernels) == interface
    if built.plugins is not None:
        assert exported(built.plugins) == interface | {"getCreators", "setLoggerFinder"}
    for library in filter(None, (built.kernels, built.plugins)):
        wanted = subprocess.run(["nm", "-D", "-u", library], capture_output=True, text=True, check=True).stdout
        assert not [line for line in wanted.splitlines() if "nvinfer" in line.lower() or "getLogger" in line]
        assert "cuda" not in wanted.lower()  # the CUDA runtime is inside


def exported(library: Path) -> set[str]:
    done = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_compiles_for_every_architecture(architecture: str, tmp_path: Path) -> None:
    if find_nvcc() is None:
        pytest.skip("no nvcc")
    made = build(tmp_path, [architecture], os.environ.get("VITSLIM_TENSORRT_INCLUDE") or None)
    assert made.kernels.stat().st_size > 0


def test_a_build_leaves_libraries_and_their_record(fake_nvcc: Path, tmp_path: Path) -> None:
    headers = include_folder(tmp_path / "include", TENSORRT_11)
    made = build(tmp_path / "out", ["12.0", "sm_80"], headers)
    assert made.architectures == ("80", "120")
    assert (made.nvcc, made.tensorrt) == ("13.0", "11.1.0")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"libvitslim_{part}.{kind}" for part in ("kernels", "plugins") for kind in ("json", "so")]
    commands = fake_nvcc.read_text()
    assert "-gencode=arch=compute_80,code=sm_80" in commands
    # PTX of the newest, for GPUs to come.
    assert "-gencode=arch=compute_120,code=compute_120" in commands
    assert "--no-undefined" in commands


def test_without_headers_there_is_no_plugin(fake_nvcc: Path, tmp_path: Path) -> None:
    made = build(tmp_path / "out", ["90"])
    assert made.plugins is None
    assert not (tmp_path / "out" / "libvitslim_plugins.so").exists()
    assert "sparse_attention_plugin" not in fake_nvcc.read_text()


def test_the_last_build_is_found_and_its_age_reported(
    fake_nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSLIM_CACHE", str(tmp_path / "cache"))
    assert kernels_library() is None
    made = build(architectures=["90"])
    assert kernels_library() == made.kernels == tmp_path / "cache" / "plugin" / "libvitslim_kernels.so"
    assert plugin_library() is None
    found = info()["libraries"]["libvitslim_kernels.so"]
    assert found["current"] is True
    monkeypatch.setattr("vitslim.plugin.inventory.sources_sha256", lambda: "another")
    assert info()["libraries"]["libvitslim_kernels.so"]["current"] is False


def test_a_library_named_in_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "mine.so"
    monkeypatch.setenv("VITSLIM_PLUGIN_LIBRARY", str(library))
    with pytest.raises(ConfigError, match=r"VITSLIM_PLUGIN_LIBRARY=.*mine.so: no such file"):
        plugin_library()
    library.touch()
    assert plugin_library() == library


def test_a_failed_build_shows_the_line_that_says_why_and_leaves_what_was_there(fake_nvcc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "libvitslim_kernels.so").write_text("old")
    headers = include_folder(tmp_path / "BROKEN", TENSORRT_10)
    with pytest.raises(MissingDependencyError, match=r'failed on sparse_attention_plugin.cpp: x.cpp\(3\): error: "Nv"'):
        build(out, ["90"], headers)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("libvitslim_kernels.so", "old")]


def test_a_folder_that_cannot_be_written_is_named(fake_nvcc: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        build(tmp_path / "file" / "out", ["90"])


@pytest.mark.usefixtures("no_nvcc")
def test_without_nvcc_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"nvcc was not found .* no GPU is needed .* NVRTC"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["x90"], "architecture 'x90': wanted compute capabilities such as 80,86,90"),
        ([], "no architecture was given"),
        (["90", "52"], "architecture 52 is not known to nvcc 13.0, which compiles for 80, 90, 120"),
    ],
)
def test_an_architecture_that_nvcc_does_not_know_is_refused(fake_nvcc: Path, given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_architectures(required_nvcc(), given)
    assert not fake_nvcc.exists()


@pytest.mark.parametrize(("text", "version"), [(TENSORRT_10, "10.12.0"), (TENSORRT_11, "11.1.0")])
def test_the_version_stands_in_the_headers(tmp_path: Path, text: str, version: str) -> None:
    assert tensorrt_version(include_folder(tmp_path, text)) == version


def test_headers_that_are_none_or_too_old_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no TensorRT headers"):
        tensorrt_version(tmp_path)
    with pytest.raises(ConfigError, match=r"TensorRT 10.2.0; the plugin wants 10.12 or later"):
        tensorrt_version(include_folder(tmp_path, TENSORRT_10.replace(" 12", " 2")))
    with pytest.raises(ConfigError, match="does not define NV_TENSORRT_MAJOR"):
        tensorrt_version(include_folder(tmp_path, "nothing"))


def test_the_useful_line_is_the_first_error() -> None:
    assert useful_line("a note\nfile.cu(3): error: no\nother error: yes\n1 error detected") == "file.cu(3): error: no"
    assert useful_line("killed\n\n") == "killed"
    assert useful_line("") == "it said nothing"
    assert len(useful_line("error: " + "x" * 1000)) < 320
