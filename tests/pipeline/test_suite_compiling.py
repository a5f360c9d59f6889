"""Compiling the competitors of a case side by side."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from vitslim.bench.suite import Case
from vitslim.pipeline.suite import Preset
from vitslim.pipeline.suite.competitors import compile_ahead, prepare_compiler

PRESET = Preset.model_validate(
    {
        "models": {"tiny": {"name": "builtin", "options": {"depth": 2, "embed_dim": 48, "num_heads": 3}}},
        "competitors": {"evo-vit": {"convert": [{"method": "evo_vit", "stages": [1]}]}},
        "groups": [{"models": ["tiny"]}],
    }
)


def case(*competitors: str) -> Case:
    return Case(model="tiny", image_size=32, backend="compiled", batch=2, competitors=competitors)


def test_one_core_compiles_nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitslim.pipeline.suite.competitors.usable_cores", lambda: 3)
    monkeypatch.setattr("vitslim.pipeline.suite.competitors.ProcessPoolExecutor", None)
    compile_ahead(case("evo-vit"), PRESET)


def test_a_compiling_process_leaves_cores_to_the_others_and_keeps_no_timing() -> None:
    from torch._inductor import config

    with config.patch(compile_threads=99, autotune_local_cache=True):
        prepare_compiler()  # what each of its processes begins with
        assert (config.compile_threads, config.autotune_local_cache) == (2, False)


def compile_then_look(found: Any) -> None:
    """What a worker of the suite does with a compiled case, up to the timing."""
    import torch

    from vitslim.pipeline.suite import competitors
    from vitslim.runtime import TorchRunner

    asked = case("tome")
    competitors.usable_cores = lambda: 4
    compile_ahead(asked, PRESET)
    ahead = compiled_kernels()
    with TorchRunner(competitors.open_competitor("dense", asked, PRESET), compiled=True) as runner:
        runner.run(torch.randn(2, 3, 32, 32))
    found.put((ahead, compiled_kernels()))


def compiled_kernels() -> set[str]:
    return {str(path) for path in Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.so")}


@pytest.mark.slow
def test_what_was_compiled_ahead_is_found_and_what_failed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    context = multiprocessing.get_context("spawn")
    found: Any = context.Queue()
    process = context.Process(target=compile_then_look, args=(found,))
    process.start()
    ahead, in_all = found.get(timeout=300)
    process.join()
    # On a CPU, where weights are frozen, Inductor keeps kernels but no graphs.
    assert ahead
    assert in_all == ahead
