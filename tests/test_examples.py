"""The programs in examples/: all import, and those that show a method run, with little to do."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

EXAMPLES = {path.stem: path for path in (Path(__file__).resolve().parent.parent / "examples").glob("*.py")}

# What a run is given, and words that it must print.
RUNS: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "compose_methods": ((), ("+ depth", "67%", "256 neurons; tokens: kept 50 %")),
    "edit_plan": ((), ("unknown mlp choice 'wide'", "the MLP of block 4 has 512", "built: 109.4 million")),
    "own_model": ((), ("77.0 -> 51.9 million", "features (2, 97, 96) logits (2, 7)")),
    "kernel_times": ((2,), ("its mark is" if torch.cuda.is_available() else "nothing to measure",)),
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
