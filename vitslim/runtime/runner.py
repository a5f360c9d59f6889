"""The one interface behind which torch, ONNX Runtime, TensorRT run a model."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.runtime.cuda_graph import CapturedRun

Precision = Literal["fp32", "fp16", "bf16"]

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


@runtime_checkable
class Runner(Protocol):
    """A model that is loaded, ready, and knows nothing of how it was made.

    ``run`` takes float32 images whatever ``precision`` the backend computes in, and returns float32. A file that was
    exported for bytes takes those and nothing else; ``inputs`` tells by its dtype, uint8. The result lies
    on ``device``, so that timing a GPU does not time a transfer. Images that lie there already are read in place.
    Called as a function a runner also takes arrays of other libraries (NumPy, CuPy, JAX) through DLPack; what it gives
    is a tensor, which every DLPack library reads without a copy. Leaving the context frees what the backend holds.

    ``share`` gives a second runner on the same weights, for another thread or stream; each is closed on its own.
    ``capture`` records a CUDA graph for images of one shape.
    """

    @property
    def name(self) -> str: ...

    @property
    def backend(self) -> str: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, images: Images) -> Float[Tensor, "b ..."]: ...

    def __call__(self, images: Any) -> Tensor: ...

    def share(self) -> "Runner": ...

    def capture(self, shape: tuple[int, ...]) -> CapturedRun: ...

    def close(self) -> None: ...

    def __enter__(self) -> "Runner": ...

    def __exit__(self, *exc: object) -> None: ...


class TakesDlpack:
    """Makes a runner callable with the arrays of any library that speaks DLPack."""

    def __call__(self, images: Any) -> Tensor:
        """``run`` for a tensor, or for an array that is read as one without a copy.

        Raises:
            ConfigError: neither.
        """
        return cast(Runner, self).run(as_tensor(images))


def as_tensor(images: Any) -> Tensor:
    """A tensor as it is, another library's array as a tensor over the same memory.

    Raises:
        ConfigError: it speaks no DLPack.
    """
    if isinstance(images, Tensor):
        return images
    if not hasattr(images, "__dlpack__"):
        raise ConfigError(f"images are a {type(images).__name__}; wanted a tensor or an array with __dlpack__")
    return torch.from_dlpack(images)


def host_buffer(spec: TensorSpec, shape: tuple[int, ...]) -> Tensor:
    """Memory on the host for images or results, page-locked where there is a GPU.

    From page-locked memory a copy to the GPU overlaps with what the GPU computes.
    """
    return torch.empty(shape, dtype=spec.dtype, pin_memory=torch.cuda.is_available())


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
            "and divide by the deviation, or export a file for bytes (--input uint8-nhwc)"
        )
    fits = images.ndim == len(spec.shape) and all(
        wanted is None or wanted == given for wanted, given in zip(spec.shape, images.shape, strict=True)
    )
    if not fits:
        wanted = "x".join("any" if size is None else str(size) for size in spec.shape)
        given = "x".join(map(str, images.shape))
        raise ConfigError(f"input '{spec.name}' takes {wanted}, given {given}; resize or rebatch the images")
