"""A small ONNX file with vitslim's operator, and a TensorRT that plays along, for what our code tells TensorRT."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitslim.runtime import trt_runner
from vitslim.runtime.machine import Machine
from vitslim.targets.tensorrt import build, refit
from vitslim.targets.tensorrt.process import COMMAND

FAKE = Path(__file__).parent / "fake_tensorrt"
STUB_COMMAND = ["env", f"PYTHONPATH={FAKE}", *COMMAND]
"""The builder's own process, in which ``import tensorrt`` finds the stand-in."""


HERE = Machine(gpu="NVIDIA L4", compute_capability="8.9", driver="580.1", cuda="13.0")


def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Be a machine with an NVIDIA L4 and a TensorRT that only plays along, as far as our own process looks."""
    monkeypatch.syspath_prepend(str(FAKE))
    # The builder alone sees the GPU; torch itself would try to use it.
    monkeypatch.setattr(build, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)))
    for module in (build, refit, trt_runner):
        monkeypatch.setattr(module, "this_machine", lambda *_: HERE)
    yield HERE
    for name in ("tensorrt", "tensorrt.plugin"):
        sys.modules.pop(name, None)


def write_file(path: Path, *, seed: int = 0, keys: int = 2, plugin: bool = True) -> Path:
    """Images, a convolution, an attention over ``keys`` kept keys, logits; in half precision between float32 ends."""
    rng = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(rng.standard_normal((12, 3, 2, 2)).astype(np.float16), "patch.weight"),
        numpy_helper.from_array(np.arange(keys, dtype=np.int32).reshape(1, 1, 1, keys), "kept"),
    ]
    call = {"domain": "vitslim", "plugin_namespace": "vitslim", "plugin_version": "1", "tile": 4, "prefix": 0}
    nodes = [
        helper.make_node("Cast", ["images"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "patch.weight"], ["tokens"], name="patch"),
        helper.make_node("SparseAttention", ["tokens", "tokens", "tokens", "kept"], ["mixed"], "attend", **call)
        if plugin
        else helper.make_node("Identity", ["tokens"], ["mixed"]),
        helper.make_node("Cast", ["mixed"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "vit",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 12])],
        weights,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("vitslim", 1)]
    # The operator in standard ones, for who has no plugin.
    body = [
        helper.make_node("MatMul", ["query", "key"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "value"], ["mixed"]),
    ]
    names = ["query", "key", "value", "kept"]
    function = helper.make_function(
        "vitslim", "SparseAttention", names, ["mixed"], body, opsets[:1], ["tile", "prefix"]
    )
    model = helper.make_model(graph, opset_imports=opsets, functions=[function])
    helper.set_model_props(model, {"precision": "fp16"})
    onnx.save(model, path)
    return path


def plan_of(engine: Path) -> dict[str, Any]:
    """What the stand-in wrote down."""
    return json.loads(engine.read_bytes())
