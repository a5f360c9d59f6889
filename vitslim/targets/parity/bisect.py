"""Where in a model an exported file first departs from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.errors import ConfigError, UnsupportedModelError
from vitslim.models import preprocessing
from vitslim.runtime import Precision, Runner, working_copy
from vitslim.targets.input_format import as_given_to, format_of
from vitslim.targets.parity.choices import Choices
from vitslim.targets.parity.result import Departure
from vitslim.targets.parity.tolerances import TOLERANCES

Inside = tuple[Tensor, list[Tensor], Mapping[str, list[Tensor]]]
"""A file's first output, what it chooses, and what comes out of its nodes by the module that they are named after."""

Opened = AbstractContextManager[tuple[Runner, Callable[[Tensor], Inside]]]
"""A runner of a file, and what runs images and tells of its inside."""

_LOOSER = 4
"""Than the limit of outputs is that of layers inside, whose differences may level out."""


def inside_of(outputs: Sequence[Tensor], modules: Sequence[str]) -> Inside:
    """All outputs of a file sorted: its own, its choices, and for each of ``modules`` one, the last of them last."""
    choices = len(outputs) - len(modules)
    inside: dict[str, list[Tensor]] = {}
    for module, value in zip(modules, outputs[choices:], strict=True):
        inside.setdefault(module, []).append(value)
    return outputs[0], [*outputs[1:choices]], inside


@torch.no_grad()
def first_departure(
    model: nn.Module, artifact: str, opened: Opened, images: Float[Tensor, "n c h w"], precision: Precision
) -> Departure:
    """Compare a file with its model, linear layer by linear layer, on the file's own choices of tokens and keys.

    Args:
        model: the one that the file was made from; stays as it is.
        artifact: how the file is called.
        opened: the file.
        images: normalised as the model expects; few are enough.
        precision: that the file is held to.

    Raises:
        ConfigError: no node of the file is named after a linear layer.
        UnsupportedModelError: the model itself gives NaN or infinity, before the file departs from it.
    """
    with opened as (runner, run):
        count = runner.inputs[0].batch or len(images)
        images = images[torch.arange(count) % len(images)]
        given, images = as_given_to(format_of(runner.metadata), images, preprocessing(model))
        output, imposed, inside = run(given)
    copy = working_copy(model).cpu().float()
    calls = _recorded(copy)
    with Choices(imposed):
        copy(images)
    times, seen = Counter(name for name, _ in calls), Counter[str]()
    before: str | None = None
    for name, expected in calls:
        seen[name] += 1
        nodes = inside.get(name, [])
        # A layer that is called k times has its nodes k times, those of each call together.
        last = seen[name] * len(nodes) // times[name] - 1
        value = nodes[last] if last >= 0 else output  # what it gives itself is not told twice
        if value.numel() != expected.numel():
            continue
        if not bool(expected.isfinite().all()):
            raise UnsupportedModelError(f"the model itself gives NaN or infinity, first seen at {name}")
        found = value.reshape(expected.shape).double()
        bad = int((~found.isfinite()).sum())
        scale = float(expected.abs().max())
        share = float((found - expected).abs().max()) / max(scale, 1e-30)
        if bad or not share <= _LOOSER * TOLERANCES[precision].relative:
            return Departure(
                artifact=artifact,
                before=before,
                at=name,
                not_finite=bad,
                difference=None if bad else share,
                largest=scale,
                remedy=_remedy(precision, name, bad),
            )
        before = name
    if before is None:
        raise ConfigError(f"{artifact} has no node that is named after a linear layer of the model; export it again")
    return Departure(artifact=artifact, before=before, remedy=_UNKNOWN)


def _recorded(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What each linear layer is going to give, call by call, in the order of the calls."""
    calls: list[tuple[str, Tensor]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(partial(_record, calls, name))
    return calls


def _record(calls: list[tuple[str, Tensor]], name: str, module: nn.Module, given: object, output: Tensor) -> None:
    calls.append((name, output))


_UNKNOWN = "was the file made from this model? export it again"


def _remedy(precision: Precision, layer: str, not_finite: int) -> str:
    if precision == "fp16" and not_finite:
        part = layer.rpartition(".")[0] or layer
        return (
            f"its values exceed float16: export it with this part in float32 (--set fp32_modules=[{part}]), or in bf16"
        )
    if precision == "int8":
        return "the report of the export says what each block loses; a smaller --max-drop leaves more of them in float"
    return _UNKNOWN
