"""From a torch model to an ONNX graph."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitslim.errors import UnsupportedModelError
from vitslim.kernels import onnx_forms
from vitslim.runtime.torch_runner import output_name

QUADRATIC = ("SlicesSplit",)
_RULES = "_DEFAULT_REWRITE_RULES"  # of onnxscript.rewriter
_PATH = re.compile(r"/\S*/(?=[^/\s]+\.py)")


def traced(model: nn.Module, images: Tensor, free: Mapping[int, Any], opset: int, *, sparse_nodes: bool) -> Any:
    """The model as an ``onnx.ModelProto``; it is not run.

    Args:
        images: an example.
        free: axes of the images that the file leaves free, and their ``torch.export.Dim``.
        sparse_nodes: write sparse attention as nodes, for which the graph then lacks the function.

    Raises:
        UnsupportedModelError: torch cannot trace or translate the model; the message names the module at fault.
    """
    shapes = (dict(free),) if free else None
    try:
        with without_quadratic_rules():
            converted = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                output_names=[output_name(model)],
                dynamic_shapes=shapes,
                custom_translation_table=dict(onnx_forms(nodes=sparse_nodes)),
                verbose=False,
            )
    except Exception as error:  # torch raises a new class for every stage of the export
        raise UnsupportedModelError(_reason(error, model)) from error
    return cast(Any, converted).model_proto


@contextmanager
def without_quadratic_rules() -> Generator[None]:
    """Leave out what the exporter's optimiser (onnxscript 0.7) takes a fifth to a half of an export for in vain.

    To find two slices that make a split, the one rule with several outputs, it goes over the whole graph at every node.
    Files are the same to the byte without it.
    """
    import onnxscript.rewriter as rewriter

    rules: Any = getattr(rewriter, _RULES, None)
    if rules is None:  # another onnxscript
        yield
        return
    setattr(rewriter, _RULES, tuple(rule for rule in rules if rule.name not in QUADRATIC))
    try:
        yield
    finally:
        setattr(rewriter, _RULES, rules)


def _reason(error: BaseException, model: nn.Module) -> str:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    where = next(filter(None, (_module_at_fault(one, model) for one in reversed(chain))), "")
    lines = [_PATH.sub("", line) for line in str(chain[-1]).splitlines() if line.strip()]
    return (
        f"torch.onnx cannot export this {type(model).__name__}{where}: {type(chain[-1]).__name__}: "
        f"{' '.join(lines[:3])}"
    )


def _module_at_fault(error: BaseException, model: nn.Module) -> str:
    """The deepest module that was at work when the error was raised, in words; nothing where it is not known."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if name}
    names = {id(module): name for name, module in model.named_modules() if name}
    found = ""
    traceback = error.__traceback__
    while traceback is not None:
        local = traceback.tb_frame.f_locals
        # While tracing, a module's own forward; while translating, the node of the traced graph.
        found = names.get(id(local.get("self")), found)
        node = local.get("node")
        stack = node.meta.get("nn_module_stack") if isinstance(node, torch.fx.Node) else None
        if stack:
            found = next(reversed(list(stack.values())))[0] or found
        traceback = traceback.tb_next
    return f", module {found} ({kinds[found]})" if found in kinds else ""
