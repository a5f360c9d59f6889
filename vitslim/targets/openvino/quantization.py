"""INT8 for OpenVINO's models, by NNCF, with images of the task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vitslim.errors import MissingDependencyError, UnsupportedModelError
from vitslim.targets.quiet import captured
from vitslim.targets.sensitivity import block_of


def quantized(model: Any, images: Float[Tensor, "n c h w"], kept: Sequence[int] = ()) -> Any:
    """A copy of OpenVINO's float model whose products are in INT8: symmetric, activations smoothed into weights.

    Products whose result is sorted stay in float, for rounding there would choose other tokens.

    Args:
        images: normalised, some hundreds of the training set.
        kept: blocks that stay in float too.

    Raises:
        MissingDependencyError: nncf is not installed.
        UnsupportedModelError: NNCF cannot quantise the model.
    """
    # NNCF counts its users over the network otherwise.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with captured():
            import nncf
    except ImportError:
        raise MissingDependencyError("INT8 for OpenVINO needs nncf: pip install 'vitslim[openvino]'") from None
    names = [*choosing_products(model), *(name for name in _products(model) if block_of(name) in {*kept})]
    try:
        with captured():
            return nncf.quantize(
                model,
                nncf.Dataset([image.unsqueeze(0).numpy() for image in images]),
                subset_size=len(images),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=list(dict.fromkeys(names))),
            )
    except Exception as error:  # of NNCF and OpenVINO
        raise UnsupportedModelError(f"NNCF cannot quantise the model: {type(error).__name__}: {error}") from error


def blocks_of(model: Any) -> list[int]:
    """The dense model's blocks whose products OpenVINO's model has."""
    return sorted({block for name in _products(model) if (block := block_of(name)) is not None})


def choosing_products(model: Any) -> list[str]:
    """The products from which the scores come that are sorted."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [one.input_value(0) for one in model.get_ordered_ops() if one.get_type_name() == "TopK"]
    while waiting:
        maker = waiting.pop().get_node()
        name = str(maker.get_friendly_name())
        if name in seen:
            continue
        seen.add(name)
        if maker.get_type_name() == "MatMul":
            found[name] = None
        else:
            waiting += [one for one in maker.input_values() if one.get_node().get_type_name() != "Constant"]
    return list(found)


def _products(model: Any) -> list[str]:
    return [str(one.get_friendly_name()) for one in model.get_ordered_ops() if one.get_type_name() == "MatMul"]
