"""Engines of TensorRT and TensorRT-RTX as targets."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError
from torch import nn

from vitslim.errors import CheckpointError, ConfigError, UnsupportedModelError
from vitslim.plans import places
from vitslim.plugin import plugin_library
from vitslim.runtime import EngineRecord, Precision, TrtRunner
from vitslim.runtime.engine import read_record
from vitslim.runtime.tensorrt_api import MODULES, Flavor
from vitslim.targets.base import Backend, ExportRequest, Opening, Target, Timing, register_target
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.free_sizes import OneSizeError
from vitslim.targets.parity.guarantee import Guarantee
from vitslim.targets.tensorrt.build import build_engine, describe
from vitslim.targets.tensorrt.options import EngineOptions
from vitslim.targets.tensorrt.source import precision_of
from vitslim.trunk import plan_of
from vitslim.validation import describe_errors


class EngineTarget(Target):
    """An engine, built from an ``.onnx`` file or from a model, of which the ONNX file is temporary.

    Its options are the fields of ``EngineOptions``.
    """

    flavor: ClassVar[Flavor]
    suffix = ".engine"
    extra = "tensorrt"
    # The default is fp16: TensorRT fuses attention in fp16 and bf16 only.
    precisions = ("fp16", "bf16", "fp32")

    def reads(self, path: Path) -> bool:
        return super().reads(path) and self.flavor == _flavor(path)

    def option_names(self) -> list[str]:
        return [name for name in EngineOptions.model_fields if name not in ("flavor", "precision")]

    def default_precision(self, source: Path | None) -> Precision:
        stated = precision_of(source) if source is not None and source.suffix == ".onnx" else None
        return stated or self.precisions[0]

    def default_path(self, source: Path, precision: str, options: Mapping[str, Any]) -> Path:
        if source.suffix == ".onnx":
            return source.with_suffix(".engine")
        return super().default_path(source, precision, options)

    def write(self, request: ExportRequest, **options: Any) -> EngineRecord:
        try:
            asked = EngineOptions(flavor=self.flavor, precision=request.precision, **options)
        except ValidationError as error:
            raise ConfigError("; ".join(describe_errors(error, EngineOptions))) from None
        if request.source is not None and request.source.suffix == ".onnx":
            return build_engine(request.source, request.path, asked, plugin_library=plugin_library())
        with tempfile.TemporaryDirectory(prefix="vitslim-onnx-") as folder:
            file = Path(folder) / f"{request.path.stem}.onnx"
            write_onnx(request.model(), file, asked, request.metadata)
            return build_engine(file, request.path, asked, plugin_library=plugin_library())

    def load(self, path: Path, how: Opening) -> TrtRunner:
        record = read_record(path)
        if record.flavor != self.flavor:
            raise ConfigError(f"{path.name} was built for {record.flavor}, backend {self.flavor} was asked for")
        library = plugin_library() if record.plugins.needs_library else None
        return TrtRunner(path, device=how.device, plugin_library=library, name=how.name)

    def guarantee(self, path: Path, asked: Precision | None, model: nn.Module) -> Guarantee:
        return Guarantee(None)  # that of its record, which was proven when it was built

    def timing_options(self, how: Timing) -> dict[str, Any]:
        return {"batch": (how.batches[0],) * 3}

    def describe(self, written: Any, request: ExportRequest) -> list[str]:
        size_mib = request.path.stat().st_size / 2**20
        lines = [f"wrote {request.path} ({size_mib:.1f} MiB, {written.seconds:.0f} s): {describe(written)}"]
        lines += [f"note: {what} is not known: {why}" for what, why in written.unknown.items()]
        if request.source is None or request.source.suffix != ".onnx":
            lines += [f"note: {advice}" for advice in engine_advice(request.model())]
        if not written.has_weights:
            refit = f"vitslim refit {request.path} --from {request.source}"
            lines.append(f"note: it has no weights yet; on the GPU that runs it: {refit}")
        return lines


@register_target("tensorrt")
class TensorrtTarget(EngineTarget):
    """Bound to one GPU model and one version of TensorRT; built on that GPU."""

    title = "TensorRT engine"
    flavor = "tensorrt"
    backends = (Backend("tensorrt", preference=4, needs_gpu=True, on_stream=True, per_batch=True, recorded=True),)
    needs = ("onnx", MODULES["tensorrt"])


@register_target("rtx")
class RtxTarget(EngineTarget):
    """For every RTX GPU; built without one."""

    title = "TensorRT-RTX engine"
    flavor = "rtx"
    backends = (Backend("rtx", preference=3, needs_gpu=True, on_stream=True, per_batch=True, recorded=True),)
    needs = ("onnx", MODULES["rtx"])
    extra = "rtx"


def engine_advice(model: nn.Module) -> list[str]:
    """What a model had better be before it becomes an engine: each advice once, with the blocks that it is for."""
    blocks: dict[str, list[int]] = {}
    for at in places(plan_of(model)):
        if advice := at.step.attention.engine_advice(at):
            blocks.setdefault(advice, []).append(at.step.block)
    return [f"blocks {', '.join(map(str, own))}: {advice}" for advice, own in blocks.items()]


def write_onnx(model: nn.Module, file: Path, options: EngineOptions, metadata: Mapping[str, Any]) -> None:
    """Write the ONNX file that an engine with these options is built or refitted from."""
    try:
        export_onnx(
            model,
            file,
            precision=options.precision,
            dynamic_image_size=options.image_size is not None,
            metadata=metadata,
        )
    except OneSizeError as error:
        raise UnsupportedModelError(f"image_size (--image-size): {error.reason}") from None


def _flavor(engine: Path) -> Flavor:
    try:
        return read_record(engine).flavor
    except CheckpointError:
        return "tensorrt"  # which says what is wrong with it
