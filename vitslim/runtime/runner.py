"""The one interface behind which torch, ONNX Runtime (later TensorRT) run a model."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vitslim.errors import ConfigError

Precision = Literal["fp32", "fp16", "bf16"]

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

    ``run`` takes float32 images whatever ``precision`` the backend computes in, and returns float32. The result lies
    on ``device``, so that timing a GPU does not time a transfer. Leaving the context frees what the backend holds.
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

    def run(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]: ...

    def close(self) -> None: ...

    def __enter__(self) -> "Runner": ...

    def __exit__(self, *exc: object) -> None: ...


def check_images(images: Tensor, spec: TensorSpec) -> None:
    """Refuse images that the model cannot take, before the backend says so in its own words.

    Raises:
        ConfigError: the rank, a size or the batch differs from what ``spec`` fixes.
    """
    fits = images.ndim == len(spec.shape) and all(
        wanted is None or wanted == given for wanted, given in zip(spec.shape, images.shape, strict=True)
    )
    if not fits:
        wanted = "x".join("any" if size is None else str(size) for size in spec.shape)
        given = "x".join(map(str, images.shape))
        raise ConfigError(f"input '{spec.name}' takes {wanted}, given {given}; resize or rebatch the images")
