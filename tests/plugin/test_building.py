"""Building the libraries: what it makes, and what it says when it cannot."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, MissingDependencyError
from vitslim.plugin import (
    ARCHITECTURES,
    WIDTHS,
    PluginBuild,
    TileSpec,
    build,
    compile_tiles,
    info,
    kernels_library,
    plugin_library,
)
from vitslim.plugin.compiling import tensorrt_version
from vitslim.plugin.cubins import checked_architectures
from vitslim.plugin.launching import declare
from vitslim.plugin.libraries import KERNEL_SOURCE, sources_sha256
from vitslim.plugin.toolchain import useful_line

TENSORRT_10 = "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 12\n#define NV_TENSORRT_PATCH 0\n"
TENSORRT_11 = (
    "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n#define TRT_PATCH_ENTERPRISE 0\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE\n"
    "#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE\n"
)
MOST_SPILLED_BYTES = 192  # of a thread
INVALID_VALUE, NO_DEVICE, MISALIGNED = 1, 100, 716  # of CUresult


def include_folder(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "NvInferRuntime.h").touch()
    (folder / "NvInferVersion.h").write_text(version)
    return folder


def test_the_launcher_is_called_without_a_gpu(built: PluginBuild) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    library = declare(ctypes.CDLL(str(built.kernels)))
    assert re.fullmatch(rb"[0-9a-f]{16}", library.vitslim_kernels_version())
    assert library.vitslim_sparse_attention_widths() == b"64, 72"
    assert [library.vitslim_sparse_attention_has(width) for width in (63, 64, 72)] == [0, 1, 1]
    numbers = [1, 1, 1, 65, 64, 4, 8, 16, 1]
    wrong = {3: 0, 4: 48, 5: 3, 6: 66, 7: 0, 8: 66, 0: 3}
    for place, number in wrong.items():
        given = [*numbers[:place], number, *numbers[place + 1 :]]
        assert library.vitslim_sparse_attention(*[None] * 5, *given, 1.0, None) == INVALID_VALUE, place
    assert b"invalid argument" in library.vitslim_error_text(INVALID_VALUE)
    assert library.vitslim_sparse_attention(8, *[None] * 4, *numbers, 1.0, None) == MISALIGNED
    status = library.vitslim_sparse_attention(*[None] * 5, *numbers, 1.0, None)
    assert status == library.vitslim_sparse_attention_load(1, 64, 16) == NO_DEVICE
    assert b"libcuda.so.1, is not here" in library.vitslim_error_text(status)


def test_the_libraries_export_their_interface_and_need_nothing_of_tensorrt(built: PluginBuild) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    names = ("", "_load", "_widths", "_has")
    interface = {f"vitslim_sparse_attention{name}" for name in names}
    interface |= {"vitslim_error_text", "vitslim_kernels_version"}
    assert exported(built.kernels) == interface
    if built.plugins is not None:
        assert exported(built.plugins) == interface | {"getCreators", "setLoggerFinder"}
    for library in filter(None, (built.kernels, built.plugins)):
        wanted = subprocess.run(["nm", "-D", "-u", library], capture_output=True, text=True, check=True).stdout
        assert not [line for line in wanted.splitlines() if "nvinfer" in line.lower() or "getLogger" in line]
        assert "cuda" not in wanted.lower()
        assert " cu" not in wanted  # the driver is opened when it is needed


def exported(library: Path) -> set[str]:
    done = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


def test_the_record_says_what_is_inside(built: PluginBuild) -> None:
    forms = {(one["capability"], one["is_ptx"], one["precision"], one["width"], one["queries"]) for one in built.inside}
    tiles = [("fp32", 16), *((precision, tile) for precision in ("fp16", "bf16") for tile in (16, 32, 64))]
    assert forms == {
        (capability, is_ptx, precision, width, tile)
        for capability, is_ptx in ((90, False), (80, True))
        for width in (64, 72)
        for precision, tile in tiles
    }
    for one in built.inside:
        assert 0 < one["registers"] <= 255
        assert one["spilled_bytes"] <= MOST_SPILLED_BYTES, one
        assert 0 < one["shared_bytes"] <= 99 * 1024
    assert (built.architectures, built.widths) == (("90",), (64, 72))
    assert sum(one["bytes"] for one in built.inside) < built.kernels.stat().st_size


@pytest.mark.slow  # a minute for each
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_for_every_architecture(architecture: str, tools: Path, tmp_path: Path) -> None:
    made = build(tmp_path, [architecture])
    assert len(made.inside) == 2 * len(WIDTHS) * 7
    assert all(one["spilled_bytes"] <= MOST_SPILLED_BYTES for one in made.inside)


@pytest.mark.usefixtures("no_kernels")
def test_a_build_leaves_libraries_and_their_record(tools: Path, tmp_path: Path) -> None:
    made = build(tmp_path / "out", ["12.0", "sm_80"], widths=[64, 32, 64])
    assert made.architectures == ("80", "120")
    assert made.widths == (32, 64)
    assert made.plugins is None
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["libvitslim_kernels.json", "libvitslim_kernels.so"]


@pytest.mark.usefixtures("no_kernels")
def test_the_last_build_is_found_and_its_age_reported(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_the_kernels_own_source_is_among_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = sources_sha256()
    other = tmp_path / "tile_attention.py"
    other.write_text(KERNEL_SOURCE.read_text() + "# changed")
    monkeypatch.setattr("vitslim.plugin.libraries.KERNEL_SOURCE", other)
    assert sources_sha256() != before


def test_a_library_named_in_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "mine.so"
    monkeypatch.setenv("VITSLIM_PLUGIN_LIBRARY", str(library))
    with pytest.raises(ConfigError, match=r"VITSLIM_PLUGIN_LIBRARY=.*mine.so: no such file"):
        plugin_library()
    library.touch()
    assert plugin_library() == library


@pytest.mark.usefixtures("no_kernels")
def test_a_failed_build_shows_the_line_that_says_why_and_leaves_what_was_there(tools: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "libvitslim_kernels.so").write_text("old")
    # Headers that declare nothing.
    headers = include_folder(tmp_path / "include", TENSORRT_10)
    with pytest.raises(CheckFailedError, match=r"failed on sparse_attention_plugin.cpp: .*error.*nvinfer1"):
        build(out, ["90"], headers)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("libvitslim_kernels.so", "old")]


@pytest.mark.usefixtures("no_kernels")
def test_a_folder_that_cannot_be_written_is_named(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        build(tmp_path / "file" / "out", ["90"])


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"no C\+\+ compiler .* nvcc and a GPU are not needed"):
        build(tmp_path)


def test_triton_that_fails_is_quoted(tools: Path) -> None:
    with pytest.raises(CheckFailedError, match="Triton did not compile the kernel: "):
        compile_tiles([TileSpec(90, "fp8", 64, 64)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["x90"], "architecture 'x90': wanted compute capabilities from 8.0 on"),
        ([], "no architecture was given"),
        (["90", "7.5"], "architecture '7.5': wanted compute capabilities from 8.0 on"),
    ],
)
def test_an_architecture_that_has_no_kernel_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_architectures(given)


@pytest.mark.parametrize("widths", [[], [60], [136], [0]])
def test_widths_that_the_kernel_does_not_take_are_refused(tmp_path: Path, widths: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"head widths .*: wanted multiples of 8 up to 128"):
        build(tmp_path, ["90"], widths=widths)


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
