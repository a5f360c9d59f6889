"""What all tests share: shape checks at run time, one thread, and the groups of tests that run only when asked for.

The normal run has jaxtyping and beartype hold every annotation of vitslim against what really passes. torch.compile
cannot look through these checks, so tests marked ``compiled`` run in a second pass: ``VITSLIM_SHAPE_CHECKS=0 pytest -m
compiled``.
"""

import gc
import os
from collections.abc import Generator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from torch.onnx._internal._lazy_import import onnxscript_apis

SHAPE_CHECKS = os.environ.get("VITSLIM_SHAPE_CHECKS", "1") != "0"

if SHAPE_CHECKS:
    # Before anything imports vitslim.
    install_import_hook("vitslim", "beartype.beartype")

torch.set_num_threads(1)

if not torch.cuda.is_available():
    # Before anything imports Triton: without a GPU its kernels run in Triton's interpreter. What compiles them does so
    # in a process of its own.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The first example pays for lazy imports, and a shared machine has slow moments: no deadline. The same examples every
# time, and no folder of found ones.
settings.register_profile("vitslim", deadline=None, derandomize=True, database=None, max_examples=15)
settings.load_profile("vitslim")


@cache
def torchlib_ops() -> Any:
    # What the lazy module itself has under the name that is taken below.
    return onnxscript_apis.__getattr__("get_torchlib_ops")()


@pytest.fixture(scope="session", autouse=True)
def measured_in_this_run(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """No analysis nor time of the user's own is read, and none that was measured among tests is left behind."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitslim.analysis.cache.cache_folder", lambda: folder / "analyses")
        patch.setattr("vitslim.planner.times.cache_root", lambda: folder)
        yield


# torch parses its table of some five hundred operators anew for every ONNX file, half a second each time; once will do.
onnxscript_apis.get_torchlib_ops = torchlib_ops

# Modules and collected tests stay for the whole run, millions of objects, which the garbage collector would walk again
# and again: it rests while they are made, and passes over them afterwards.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="also run real model sizes, all pairs of size and type, long runs"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "slow": None if config.getoption("--slow") else "slow: run with --slow",
        "gpu": None if torch.cuda.is_available() else "needs an NVIDIA GPU",
        "compiled": "run apart: VITSLIM_SHAPE_CHECKS=0 pytest -m compiled" if SHAPE_CHECKS else None,
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
