"""Whether a Triton kernel takes the place of torch's own operators.

``VITSLIM_TRITON`` decides: with ``0`` none does, with ``1`` all that run here do, with ``auto``, the default, those do
that a committed measurement on this architecture (``vitslim/assets/triton_measured.json``) says to be faster, in a
whole model, than what ``torch.compile`` makes of torch's operators. Where nothing was measured torch computes.
"""

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.shapes import Count

TritonMode = Literal["auto", "0", "1"]
Family = Literal["skip_function", "token_selection", "tile_attention"]
"""Kernels that are measured together, by the module of ``vitslim.kernels.triton`` that has them."""

SWITCH = "VITSLIM_TRITON"
MEASURED_FILE = "triton_measured.json"
LEAST_GAIN = 1.02
"""Less is not told from noise."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Older ones have neither bfloat16 nor the tensor cores that the kernels are compiled for.
_LEAST_CAPABILITY = (8, 0)

# A constant, since torch.compile traces the check and could not look for a package.
_HAS_TRITON = find_spec("triton") is not None and torch.version.cuda is not None


class Measured(NamedTuple):
    """How much faster a whole model is with a family of kernels than without.

    Args:
        capability: of the GPU, ``9.0``.
        dtype: of the tokens, ``bfloat16``.
        images, tokens: of a call; tokens of the model's input, of which methods leave some out.
        speedup: time without over time with them, both compiled, in the same rounds.
    """

    family: Family
    capability: str
    dtype: str
    images: int
    tokens: int
    speedup: float


def _asked() -> TritonMode:
    asked = os.environ.get(SWITCH, "auto")
    for mode in get_args(TritonMode):
        if asked == mode:
            return mode
    raise ConfigError(f"{SWITCH}={asked!r}: wanted {', '.join(get_args(TritonMode))}")


@dataclass
class _Switch:
    """Read while torch.compile traces, which so compiles anew where it changes."""

    mode: TritonMode


_switch = _Switch(_asked())


@contextmanager
def triton_mode(mode: TritonMode) -> Generator[None]:
    """Another answer than the environment's inside the block, for what is compiled or captured there."""
    before, _switch.mode = _switch.mode, mode
    try:
        yield
    finally:
        _switch.mode = before


def use_triton(tensor: Tensor, family: Family, tokens: Count) -> bool:
    """Whether kernels take over where this tensor of (images, ...) lies, for so many tokens of an image.

    They run on NVIDIA GPUs since Ampere with Triton, where no file is traced: a file (ONNX, ``.pt2``, AOTInductor) is
    opened by others, so it is written in standard operators. See the module for when they are wanted.
    """
    if not tensor.is_cuda or _switch.mode == "0" or not _is_supported(tensor.dtype, tensor.device.index):
        return False
    return _switch.mode == "1" or _gains(family, tensor.dtype, tensor.device.index, tensor.shape[0], tokens)


def _gains(family: Family, dtype: torch.dtype, device: int | None, images: Count, tokens: Count) -> bool:
    """Whether what was measured at the next longer input says so, for the next smaller and the next larger batch."""
    known = _known(family, dtype, device)
    length = next((one for one, _, _ in known if tokens <= one), None)
    smaller = [gains for at, batch, gains in known if at == length and batch <= images]
    larger = [gains for at, batch, gains in known if at == length and batch >= images]
    return bool(smaller) and bool(larger) and smaller[-1] and larger[0]


# A constant to torch.compile; the comparison with the sizes is not, and guards them where they are free.
@torch.compiler.assume_constant_result
def _known(family: Family, dtype: torch.dtype, device: int | None) -> tuple[tuple[int, int, bool], ...]:
    """Tokens, images and whether the kernels gain, in rising order."""
    major, minor = _capability(device)
    wanted = (family, f"{major}.{minor}", str(dtype).removeprefix("torch."))
    found = (one for one in measurements() if (one.family, one.capability, one.dtype) == wanted)
    return tuple(sorted((one.tokens, one.images, one.speedup >= LEAST_GAIN) for one in found))


@cache
def measurements() -> tuple[Measured, ...]:
    """What was measured on any GPU, as it is committed."""
    text = (resources.files("vitslim") / "assets" / MEASURED_FILE).read_text("utf-8")
    return tuple(Measured(**row) for row in json.loads(text)["rows"])


# A constant to torch.compile, which in torch 2.11 takes its own tracing for an export.
@torch.compiler.assume_constant_result
def traces_a_file() -> bool:
    """Whether torch.export or torch.onnx is at work."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def _is_supported(dtype: torch.dtype, device: int | None) -> bool:
    return dtype in _DTYPES and _HAS_TRITON and not traces_a_file() and _is_recent(device)


@torch.compiler.assume_constant_result
def _is_recent(device: int | None) -> bool:
    return _capability(device) >= _LEAST_CAPABILITY


@cache
def _capability(device: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
