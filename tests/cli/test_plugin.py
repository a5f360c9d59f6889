"""The commands plugin build and plugin info."""

from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.plugin.conftest import no_compiler, no_kernels, tools
from vitslim import plugin

__all__ = ["no_compiler", "no_kernels", "tools"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITSLIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VITSLIM_TENSORRT_INCLUDE", raising=False)
    return tmp_path / "cache"


@pytest.mark.usefixtures("tools", "no_kernels")
def test_build_and_info_tell_the_same(vitslim: Command, cache: Path) -> None:
    made = vitslim("plugin", "build", "--arch", "80,90", "--json").document
    assert made["architectures"] == ["80", "90"]
    assert made["kernels"] == str(cache / "plugin" / "libvitslim_kernels.so")
    found = vitslim("plugin", "info", "--json").document
    assert found["libraries"]["libvitslim_kernels.so"]["build"] == made
    assert found["libraries"]["libvitslim_plugins.so"] is None
    shown = vitslim("plugin", "info").out
    assert "8.0 and later, as PTX" in shown
    assert "bf16" in shown


def test_widths_are_whole_numbers(vitslim: Command) -> None:
    outcome = vitslim("plugin", "build", "--widths", "64,wide")
    assert outcome.code == 2
    assert "--widths 64,wide: wanted whole numbers such as 64,72" in outcome.error


@pytest.mark.usefixtures("tools", "no_kernels")
def test_what_was_left_out_is_reported(vitslim: Command, tmp_path: Path) -> None:
    outcome = vitslim("plugin", "build", "--arch", "90", "--out", tmp_path / "out")
    assert outcome.code == 0
    assert "the TensorRT plugin was left out" in outcome.err
    assert "VITSLIM_KERNELS_LIBRARY=" in outcome.err
    assert "not built: vitslim plugin build --tensorrt-include DIR" in vitslim("plugin", "info").out


@pytest.mark.usefixtures("tools", "no_kernels")
def test_both_variables_are_named_for_a_folder_of_ones_own(
    vitslim: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plugin.build(tmp_path / "out", ["90"])
    with_plugin = made.model_copy(update={"plugins": tmp_path / "out" / "libvitslim_plugins.so"})
    monkeypatch.setattr(plugin, "build", lambda *_: with_plugin)
    said = " ".join(vitslim("plugin", "build", "--out", tmp_path / "out").err.split())
    assert f"VITSLIM_KERNELS_LIBRARY={made.kernels}" in said
    assert f"VITSLIM_PLUGIN_LIBRARY={with_plugin.plugins}" in said


@pytest.mark.usefixtures("tools", "no_kernels")
def test_nothing_is_said_to_be_compiled_that_is_refused(vitslim: Command) -> None:
    for words in (("--arch", "70"), ("--arch", "abc"), ("--widths", "60")):
        outcome = vitslim("plugin", "build", *words)
        assert outcome.code == 2
        assert "compiling" not in outcome.err
    said = " ".join(vitslim("plugin", "build", "--arch", "90", "--widths", "64").err.split())
    assert "compiling for 90 and heads of 64;" in said


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_exit_code_says_that_something_is_missing(vitslim: Command) -> None:
    outcome = vitslim("plugin", "build")
    assert outcome.code == 3
    assert outcome.error.startswith("no C++ compiler was found")
    assert "missing" in vitslim("plugin", "info").out


@pytest.mark.usefixtures("tools", "no_kernels")
def test_a_folder_without_headers_is_a_usage_error(vitslim: Command, tmp_path: Path) -> None:
    outcome = vitslim("plugin", "build", "--tensorrt-include", tmp_path)
    assert outcome.code == 2
    assert "has no TensorRT headers" in outcome.error
