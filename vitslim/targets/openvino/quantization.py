"""INT8 for OpenVINO's models, by NNCF, with images of the task."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vitslim.errors import MissingDependencyError, UnsupportedModelError
from vitslim.shapes import Result
from vitslim.targets.quiet import captured

_BLOCK = re.compile(r"blocks\.(\d+)\.")


class Sensitivity(Result):
    """What INT8 loses, and which blocks stayed in float for that.

    Attributes:
        loss: points that are lost with all blocks in INT8.
        without: the same with one block in float, by its number; empty where nothing had to be found out.
        kept: the blocks in float, in the order in which they were taken out.
        last: points that are lost with those.
    """

    loss: float
    without: dict[int, float] = Field(default_factory=dict[int, float])
    kept: list[int] = Field(default_factory=list[int])
    last: float

    def lines(self) -> list[str]:
        """In words."""
        if not self.without:
            return []
        order = sorted(self.without, key=lambda block: self.without[block])
        shown = ", ".join(f"{block} ({self.without[block]:.2f})" for block in order)
        kept = ", ".join(map(str, self.kept))
        return [
            f"all blocks in INT8 lose {self.loss:.2f} points; with one block in float: {shown}",
            f"blocks {kept} stayed in float: {self.last:.2f} points lost",
        ]


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
    names = [*choosing_products(model), *(name for name in _products(model) if _block_of(name) in {*kept})]
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


def least_kept(blocks: Sequence[int], loss_with: Callable[[Sequence[int]], float], most: float) -> Sensitivity:
    """Take blocks out of INT8, those first that it harms most, until no more than ``most`` is lost, or half are out.

    Args:
        loss_with: points lost with these blocks in float.
    """
    loss = last = loss_with(())
    without: dict[int, float] = {}
    kept: list[int] = []
    if loss > most:
        without = {block: loss_with((block,)) for block in blocks}
        for block in sorted(blocks, key=lambda one: without[one])[: len(blocks) // 2]:
            kept.append(block)  # written once more even if it is the only one: the last file is the one that stays
            last = loss_with(kept)
            if last <= most:
                break
    return Sensitivity(loss=loss, without=without, kept=kept, last=last)


def blocks_of(model: Any) -> list[int]:
    """The dense model's blocks whose products OpenVINO's model has."""
    return sorted({block for name in _products(model) if (block := _block_of(name)) is not None})


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


def _block_of(name: str) -> int | None:
    found = _BLOCK.search(name)
    return None if found is None else int(found[1])
