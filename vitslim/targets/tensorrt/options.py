"""What can be asked of an engine."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from vitslim.runtime import Precision
from vitslim.runtime.tensorrt_api import Flavor
from vitslim.shapes import Config

PluginChoice = Literal["auto", "on", "off", "external"]
Sizes = tuple[int, int, int]

_NUMBER = re.compile("[0-9]{1,9}")


class EngineOptions(Config):
    """How an engine is built; ``batch`` and ``image_size`` are least, best and most,
    or the text ``1:8:64``; one number is all three.

    Args:
        flavor: TensorRT, whose engines are bound to one GPU model, or TensorRT-RTX, whose engines run on every RTX GPU.
        precision: of weights and arithmetic, proven on what was built.
        batch: images per call that the engine takes; it is tuned for the middle one.
        image_size: pixels of the side of square images; ``None`` for the one size of the ONNX file.
        plugins: ``auto`` takes vitslim's plugin where there is a way to it and the flavor can run it, and the engine
            then carries it; ``on`` fails where there is none; ``external`` leaves the library outside the engine, for
            systems that let no file bring code; ``off`` takes plain operators.
        timing_cache: a file of kernel timings, read and added to; the same GPU builds faster with it.
        version_compatible: the engine also runs in later versions of TensorRT.
        refit: weights can be exchanged later.
        weight_streaming: weights stay on the host and are streamed, for models beyond the GPU's memory.
        strip_plan: the engine is stored without its weights, to be given back the same ones on the machine that runs
            it; with ``refit`` others too.
        require_fused_mha: fail unless every attention became one fused kernel.
        workspace_mib: limit of scratch memory on the GPU; ``None`` for all of it.
    """

    flavor: Flavor = "tensorrt"
    precision: Precision = "fp16"
    batch: Sizes = (1, 8, 64)
    image_size: Sizes | None = None
    plugins: PluginChoice = "auto"
    timing_cache: Path | None = None
    version_compatible: bool = False
    refit: bool = False
    weight_streaming: bool = False
    strip_plan: bool = False
    require_fused_mha: bool = False
    workspace_mib: int | None = None

    @field_validator("batch", "image_size", mode="before")
    @classmethod
    def _read_text(cls, sizes: Any) -> Any:
        if not isinstance(sizes, str):
            return sizes
        parts = sizes.split(":")
        if len(parts) not in (1, 3) or not all(_NUMBER.fullmatch(part.strip()) for part in parts):
            raise ValueError("wanted min:opt:max such as 1:8:64, or one number")
        return [int(part) for part in (parts if len(parts) == 3 else parts * 3)]

    @field_validator("batch", "image_size")
    @classmethod
    def _check_order(cls, sizes: Sizes | None) -> Sizes | None:
        if sizes is not None and not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise ValueError(f"{':'.join(map(str, sizes))} is not min:opt:max with 1 <= min <= opt <= max")
        return sizes

    @model_validator(mode="after")
    def _check_flavor(self) -> "EngineOptions":
        if self.flavor == "rtx" and self.version_compatible:
            raise ValueError("TensorRT-RTX has no version-compatible engines; leave --version-compatible out")
        if self.flavor == "rtx" and self.timing_cache is not None:
            raise ValueError("TensorRT-RTX times nothing while it builds; leave --timing-cache out")
        if self.flavor == "rtx" and self.plugins in ("on", "external"):
            raise ValueError(
                "TensorRT-RTX ends the process when it meets a plugin; use --to tensorrt, or --plugins off for "
                "plain operators"
            )
        return self

    def builder_flags(self) -> list[str]:
        """The names of TensorRT's builder flags to set.

        None of them names a precision: the network is strongly typed, its types are the file's.
        """
        chosen = {
            "VERSION_COMPATIBLE": self.version_compatible,
            "REFIT": self.refit,
            "WEIGHT_STREAMING": self.weight_streaming,
            "STRIP_PLAN": self.strip_plan,
        }
        return [name for name, is_wanted in chosen.items() if is_wanted]
