"""Reading what TensorRT tells of an engine's layers: their types, their numbers' types, which are fused attention."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vitslim.runtime import Precision

INSPECTOR_TYPES: dict[Precision, str] = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16"}
"""How the inspector writes the element type of each precision."""

LEAST_SHARE = 0.9
"""Of the elements of all weight matrices, how many must be stored in the asked precision.

Not all: a method may select tokens in float32 on purpose, with a small matrix of its own. The error that this guards
against is an engine that is float32 throughout.
"""

# TensorRT's fused attention kernels so far: _gemm_mha_v2, _gemv_mha_v1, fmha_v2.
_FUSED = re.compile(r"mha", re.IGNORECASE)
_SPELLINGS = {"FP32": "Float", "FP16": "Half", "BF16": "BFloat16", "Bf16": "BFloat16", "BFLOAT16": "BFloat16"}
_FLOATS = ("Float", "Half", "BFloat16")

_LINE = re.compile(r"^Name: (?P<name>[^,]*), LayerType: (?P<type>\w+), (?P<rest>.*)$")
_TENSOR = re.compile(r"Name: (?P<name>[^,]*), Dimensions: \[(?P<sizes>[-\d,]*)\].*?Datatype: (?P<type>\w+)")


@dataclass(frozen=True)
class EngineTensor:
    """A tensor that a layer reads, holds or writes; ``-1`` in the shape is decided at run time."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine. ``constants`` are its weights; TensorRT does not always tell them."""

    name: str
    type: str
    tactic: str
    outputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]

    @property
    def dtype(self) -> str:
        """The type of its largest weight, of its first result where it has none, ``none`` where nothing is reported."""
        largest = max(self.constants, key=lambda tensor: math.prod(tensor.shape), default=None)
        tensor = largest or next(iter(self.outputs), None)
        return "none" if tensor is None else tensor.dtype

    @property
    def is_fused_attention(self) -> bool:
        return _FUSED.search(self.name) is not None or _FUSED.search(self.tactic) is not None


def layers_from_log(lines: Iterable[str]) -> list[EngineLayer]:
    """The layers as the builder lists them at the end of a verbose log, which it does without a GPU too."""
    found: list[EngineLayer] = []
    for line in lines:
        match = _LINE.match(line)
        if match is not None:
            rest = match["rest"]
            found.append(
                EngineLayer(
                    name=match["name"],
                    type=match["type"],
                    tactic=_between(rest, "TacticName: ", ","),
                    outputs=_tensors(_between(rest, "Outputs: [", "], TacticName")),
                    constants=_tensors(_between(rest, "Constants: [", "], Outputs")),
                )
            )
    return found


def layers_from_inspector(entries: Sequence[Any]) -> list[EngineLayer]:
    """The layers as the engine inspector tells them in JSON; a layer may be its bare name."""
    return [_layer(entry) for entry in entries]


def count_types(layers: Iterable[EngineLayer]) -> dict[str, dict[str, int]]:
    """How many layers there are of each type, by the type of their numbers."""
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        counts.setdefault(layer.type, Counter())[layer.dtype] += 1
    return {kind: dict(sorted(of.items())) for kind, of in sorted(counts.items())}


def fused_attentions(layers: Iterable[EngineLayer]) -> int:
    """How many layers are a fused attention kernel, by their names."""
    return sum(layer.is_fused_attention for layer in layers)


def weight_elements(layers: Iterable[EngineLayer]) -> dict[str, int]:
    """How many elements all weight matrices have, by their floating type."""
    counts: Counter[str] = Counter()
    for layer in layers:
        for tensor in layer.constants:
            is_matrix = sum(size > 1 for size in tensor.shape) >= 2
            if is_matrix and tensor.dtype in _FLOATS:
                counts[tensor.dtype] += math.prod(tensor.shape)
    return dict(counts)


def _layer(entry: Any) -> EngineLayer:
    if not isinstance(entry, dict):
        return EngineLayer(str(entry), "unknown", "", (), ())
    layer: dict[str, Any] = entry
    constants = [*layer.get("Constants", []), *([layer["Weights"]] if isinstance(layer.get("Weights"), dict) else [])]
    return EngineLayer(
        name=str(layer.get("Name", "")),
        type=str(layer.get("LayerType", "unknown")),
        tactic=str(layer.get("TacticName", "")),
        outputs=tuple(_tensor(one) for one in layer.get("Outputs", [])),
        constants=tuple(_tensor(one) for one in constants),
    )


def _tensor(entry: Any) -> EngineTensor:
    # A convolution's weights are reported as a count, everything else as dimensions.
    shape = entry.get("Dimensions") or [2, int(entry.get("Count", 0)) // 2]
    dtype = entry.get("Datatype") or entry.get("Type") or entry.get("Format/Datatype") or "none"
    return EngineTensor(tuple(int(size) for size in shape), _spelled(str(dtype)))


def _tensors(text: str) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(tuple(int(size) for size in match["sizes"].split(",") if size), _spelled(match["type"]))
        for match in _TENSOR.finditer(text)
    )


def _spelled(dtype: str) -> str:
    # Older inspectors tell type and format in one: "Row major linear FP16 format".
    for spelling, name in _SPELLINGS.items():
        if spelling in dtype:
            return name
    return dtype


def _between(text: str, start: str, end: str) -> str:
    _, _, after = text.partition(start)
    return after.partition(end)[0]
