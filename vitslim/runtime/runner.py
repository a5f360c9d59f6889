"""The one interface behind which torch, ONNX Runtime, TensorRT run a model."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.runtime.cuda_graph import CapturedRun

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""What matrix products are computed in; ``int8`` files say themselves what the rest is."""

Images = Float[Tensor, "b c h w"] | UInt8[Tensor, "b _ _ _"]
"""What a runner takes: normalised images; or bytes 0..255 in the file's layout, where it was exported for them."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (``None``: any size) and element type of one input or output as the backend stores it."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    @property
    def batch(self) -> int | None:
        """The fixed batch size; ``None`` when any batch is taken."""
        return self.shape[0]


OfOne = TypeVar("OfOne", bound="Runner")


class Runner(ABC):
    """A model that is loaded, ready, and knows nothing of how it was made.

    ``run`` takes float32 images whatever ``precision`` the backend computes in, and returns float32. A file that was
    exported for bytes takes those and nothing else; ``inputs`` tells by its dtype, uint8. The result lies
    on ``device``, so that timing a GPU does not time a transfer. Images that lie there already are read in place.
    Called as a function a runner also takes arrays of other libraries (NumPy, CuPy, JAX) through DLPack; what it gives
    is a tensor, which every DLPack library reads without a copy. Leaving the context frees what the backend holds.

    Args:
        name: how reports call it.
        backend: what computes.
        precision: that it computes in.
        device: where its results lie.
        inputs: as the backend stores them; the first are the images.
        outputs: as the backend stores them.
        metadata: what the file behind it says about itself; nothing for backends that keep none.
    """

    name: str
    backend: str
    precision: Precision
    device: torch.device
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = MappingProxyType({})
    is_open: bool = True

    @abstractmethod
    def run(self, images: Images) -> Float[Tensor, "b ..."]:
        """The first output for ``images``."""

    def __call__(self, images: Any) -> Tensor:
        """``run`` for an array of any library that speaks DLPack.

        Raises:
            ConfigError: ``images`` is no such array.
        """
        if not hasattr(images, "__dlpack__"):
            raise ConfigError(f"images are a {type(images).__name__}; wanted a tensor or an array with __dlpack__")
        return self.run(images if isinstance(images, Tensor) else torch.from_dlpack(images))

    def share(self: OfOne) -> OfOne:
        """A second runner on the same weights, for another thread or stream; each is closed on its own."""
        self.require_open()
        return copy.copy(self)

    def capture(self, shape: tuple[int, ...]) -> CapturedRun:
        """Record a CUDA graph for images of one shape.

        Raises:
            ConfigError: the backend cannot.
        """
        raise ConfigError(
            f"{self.backend} cannot record images of {shape} as a CUDA graph of torch; "
            "use the torch, tensorrt or rtx backend for that, or call run"
        )

    def close(self) -> None:
        """Free what the backend holds, with the last runner that shares it; the runner cannot run afterwards."""
        self.is_open = False

    def require_open(self) -> None:
        """Refuse to run after ``close``.

        Raises:
            ConfigError: the runner is closed.
        """
        if not self.is_open:
            raise ConfigError("this runner is closed; open a new one")

    def __enter__(self: OfOne) -> OfOne:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_images(images: Tensor, spec: TensorSpec) -> None:
    """Refuse images that the model cannot take, before the backend says so in its own words.

    Raises:
        ConfigError: the rank, a size or the batch differs from what ``spec`` fixes; or normalised images meet a file
            that takes bytes, or bytes one that takes normalised images.
    """
    if (images.dtype == torch.uint8) != (spec.dtype == torch.uint8):
        given = str(images.dtype).removeprefix("torch.")
        raise ConfigError(
            f"input '{spec.name}' takes the bytes of pictures, 0..255 as uint8, and normalises them inside, given "
            f"{given}; pass the bytes as they are"
            if spec.dtype == torch.uint8
            else f"input '{spec.name}' takes normalised images, given bytes (uint8); scale to 0..1, subtract the mean "
            "and divide by the deviation, or export a file for bytes (--input-format uint8-nhwc)"
        )
    fits = images.ndim == len(spec.shape) and all(
        wanted is None or wanted == given for wanted, given in zip(spec.shape, images.shape, strict=True)
    )
    if not fits:
        wanted = "x".join("any" if size is None else str(size) for size in spec.shape)
        given = "x".join(map(str, images.shape))
        raise ConfigError(f"input '{spec.name}' takes {wanted}, given {given}; resize or rebatch the images")
