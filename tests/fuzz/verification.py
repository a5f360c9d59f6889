"""``python -m tests.fuzz.verification --plans 200``: whether `verify` tells right files from wrong ones.

Random plans of small models and of the built-in one, with random weights or the trained ones, are exported to ONNX and
OpenVINO: every file has to pass. Then one ONNX file of each plan is tampered with and stripped of its record, so that
arithmetic alone can catch it: every such file has to fail, unless its outputs are bit for bit those from before (behind
a LayerScale of 1e-5 a key more or less is nothing).
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from tests.plans.random_plans import mixtures, plans_from
from tests.variants import NOT_DESCRIBABLE, ONE_PER_ADAPTER, dense, images_for, lively_
from vitslim.errors import VitslimError
from vitslim.methods import convert
from vitslim.names import BUILTIN
from vitslim.opening import open_model
from vitslim.plans import ModelPlan, check
from vitslim.runtime import Precision
from vitslim.targets import TARGETS, ExportRequest, verify
from vitslim.targets.record import export_record_path
from vitslim.trunk import plan_of, trunk_of

MODELS = [*(name for name in ONE_PER_ADAPTER if name not in NOT_DESCRIBABLE), "eva_dinov3", BUILTIN]
FILES: Sequence[tuple[str, Precision]] = (
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
)
IMAGES = 8
_SUM = re.compile(r"blocks\.\d+/")  # of a branch and the stream


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.verification", description=__doc__)
    parser.add_argument("--plans", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first plan")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    wrong = 0
    for number in range(asked.first, asked.first + asked.plans):
        for what, failure in findings(number):
            kind = what.partition(":")[0]
            found[kind] += 1
            if failure:
                wrong += 1
                print(f"plan {number}, {what}: {failure}", flush=True)
    for kind, count in sorted(found.items()):
        print(f"{count:5d}  {kind}")
    print(f"{wrong} wrong verdicts")
    return min(1, wrong)


def findings(number: int) -> Iterator[tuple[str, str | None]]:
    """Of one plan what was tried, and where the verdict is wrong how."""
    random = Random(number)
    name = MODELS[number % len(MODELS)]
    first = open_model(BUILTIN).eval() if name == BUILTIN else dense(name)
    plan = next(plan for plan in mixtures(plans_from(plan_of(first)), random) if not check(plan))
    model = _built(first, plan)
    images = images_for(model, batch=IMAGES, seed=number)
    with TemporaryDirectory() as folder:
        for to, precision in FILES:
            target = TARGETS.get(to)
            path = Path(folder) / f"model-{precision}{target.suffix}"
            try:
                target.write(ExportRequest(path, precision, lambda: model, images=lambda count: images[:count]))
                report = verify(model, path, images)
            except VitslimError as error:
                yield f"{to} {precision}: {name}", str(error)
                continue
            yield f"{to} {precision}: {name}", "; ".join(report.failures()) or None
        path = Path(folder) / "model-fp32.onnx"
        if path.exists():
            yield from _tampered(path, model, images, random)


@torch.no_grad()
def _built(first: nn.Module, plan: ModelPlan) -> nn.Module:
    model = convert(first, plan=plan)
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    return model.eval()


def _tampered(path: Path, model: nn.Module, images: Tensor, random: Random) -> Iterator[tuple[str, str | None]]:
    graph = onnx.load(path)
    export_record_path(path).unlink()
    before = _outputs(path, images)
    changes = [("a tensor scaled by 1.01", _scaled), ("a wrong permutation", _permuted)]
    if _sums(graph):
        changes.append(("a dropped step", _dropped))
    if any(node.op_type == "TopK" for node in graph.graph.node):
        changes.append(("k off by one", _other_k))
    what, change = random.choice(changes)
    detail = change(graph, random)
    onnx.save(graph, path)
    try:
        report = verify(model, path, images)
    except VitslimError:  # it cannot even be run
        yield f"tampered, {what}: {detail}", None
        return
    if report.passed and np.array_equal(_outputs(path, images), before):
        yield f"tampered without effect, {what}: {detail}", None
        return
    yield f"tampered, {what}: {detail}", "it passed" if report.passed else None


def _outputs(path: Path, images: Tensor) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


def _scaled(graph: Any, random: Random) -> str:
    tensor = _weight(graph, random)
    _set(tensor, onnx.numpy_helper.to_array(tensor) * np.float32(1.01))
    return str(tensor.name)


def _permuted(graph: Any, random: Random) -> str:
    """The rows that one product reads in another order."""
    tensor = _weight(graph, random)
    values = onnx.numpy_helper.to_array(tensor)
    _set(tensor, np.roll(values, 1, axis=0))
    return str(tensor.name)


def _other_k(graph: Any, random: Random) -> str:
    node = random.choice([one for one in graph.graph.node if one.op_type == "TopK"])
    known = {one.name: one for one in graph.graph.initializer}
    tensor = deepcopy(known[node.input[1]])
    tensor.name = f"{tensor.name}/tampered"
    _set(tensor, onnx.numpy_helper.to_array(tensor) - 1)
    graph.graph.initializer.append(tensor)
    node.input[1] = tensor.name
    return str(node.name)


def _dropped(graph: Any, random: Random) -> str:
    """One sum of a block's branch and the stream gives the stream alone."""
    node = random.choice(_sums(graph))
    order = {name: index for index, one in enumerate(graph.graph.node) for name in one.output}
    stream = min(node.input, key=lambda name: order.get(name, -1))
    del node.attribute[:]
    node.op_type = "Identity"
    node.ClearField("input")
    node.input.append(stream)
    return str(node.name)


def _sums(graph: Any) -> list[Any]:
    return [node for node in graph.graph.node if node.op_type == "Add" and _SUM.match(node.name)]


def _weight(graph: Any, random: Random) -> Any:
    """That of some product in a block."""
    known = {one.name: one for one in graph.graph.initializer}
    named = [name for node in graph.graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input]
    return known[random.choice([name for name in named if name in known])]


def _set(tensor: Any, values: Any) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


if __name__ == "__main__":
    sys.exit(main())
