"""The programs in examples/: all import, and those that show a method run, with little to do."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = {path.stem: path for path in (Path(__file__).resolve().parent.parent / "examples").glob("*.py")}

# What a run is given, and words that it must print.
RUNS: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "compose_methods": ((), ("+ depth", "67%", "256 neurons; tokens: kept 50 %")),
    "edit_plan": ((), ("unknown mlp choice 'wide'", "the MLP of block 4 has 512", "built: 109.4 million")),
    "own_model": ((), ("77.0 -> 51.9 million", "features (2, 97, 96) logits (2, 7)")),
}


def opened(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_imports(name: str) -> None:
    opened(name)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_an_example_runs_and_shows_what_it_is_about(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given, words = RUNS[name]
    opened(name).main(*given)
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed


def test_every_kernel_is_compiled_as_it_is_launched() -> None:
    pytest.importorskip("triton")
    report = opened("compiled_kernels")
    found = {name: (form, programs) for name, form, programs in report.launches(6, 32)}
    assert {name.split()[0].rstrip(",") for name in found} == {
        *("depthwise_kernel", "tap_gradient_kernel", "class_row_kernel", "rank_kernel", "move_kernel"),
        "tile_attention_kernel",
    }
    form, programs = found["tile_attention_kernel, 1,025 tokens, 257 keys"]
    assert programs == 32 * 6 * (1 + 16)
    # What Triton sees of the arguments: one class token, strides in multiples of 16, an odd number of tokens.
    assert form.constants["prefix"] == 1
    assert form.types["query"] == "*bf16"
    assert (form.types["tokens"], "tokens" in form.multiples) == ("i32", False)
    assert form.multiples["query_image"] == 16


def test_programs_at_once_are_bound_by_the_scarcest_of_three() -> None:
    pytest.importorskip("triton")
    report = opened("compiled_kernels")

    def at_once(registers: int, shared: int, threads: int) -> int:
        made = report.CompiledKernel("", 90, registers, 0, shared, threads, "", 2, "", b"")
        return report.programs_at_once(made) // report.MULTIPROCESSORS

    assert at_once(128, 0, 128) == 4
    assert at_once(129, 0, 128) == 3
    assert at_once(32, 41_472, 128) == 5
    assert at_once(32, 0, 1024) == 2
    assert at_once(16, 0, 32) == 32
