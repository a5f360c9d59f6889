"""The programs in examples/: all import, and those that show a method run, with little to do."""

import importlib.util
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import vitslim

EXAMPLES = {path.stem: path for path in (Path(__file__).resolve().parent.parent / "examples").glob("*.py")}
IMAGES = "fractals:classes=4,train_per_class=4,val_per_class=4"
NARROW = {"pretrained": False, "embed_dim": 48, "num_heads": 3, "num_classes": 4}
"""What makes the built-in model a quick one, with all its blocks and patches."""

# What a run is given, and words that it must print.
RUNS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "own_model": ({}, ("reuse", "MMAC", "features (2, 97, 96) logits (2, 7)")),
    "compose_methods": ({}, ("sret, then evo_vit", "pruning, then evo_vit: ", "one of them can rule")),
    "convert_evo_vit": (
        {"data": IMAGES, "steps": 2},
        ("kept 32 of 64, chosen by class attention", "early in training block 6: kept 32 of 64, chosen", "# "),
    ),
    "convert_sret": (
        {"data": IMAGES, "steps": 1, "ranks": (0, "full"), "rounds": 5},
        ("rank full", "agrees with the dense model on 100.0%", "x the speed of dense"),
    ),
    "kernel_times": ({"batch": 2}, ("its mark is" if torch.cuda.is_available() else "nothing to measure",)),
    "convert_sparsifiner": ({"data": IMAGES, "steps": 1}, ("one set per image", "of 65 keys", "Q")),
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
    monkeypatch.setenv("VITSLIM_CACHE", str(tmp_path))
    monkeypatch.setattr(vitslim, "open_model", partial(vitslim.open_model, **NARROW))
    options, words = RUNS[name]
    opened(name).main(**options)
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed
