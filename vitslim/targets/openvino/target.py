"""OpenVINO's intermediate representation as a target."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, UnsupportedModelError
from vitslim.files import json_text, replace_together, reported_as, scratch_beside
from vitslim.models import preprocessing
from vitslim.models.digest import tensors_sha256
from vitslim.runtime import OpenVinoRunner, Precision
from vitslim.runtime.engine import file_sha256
from vitslim.runtime.openvino_runner import METADATA, WEIGHTS_DIGEST, metadata_of, precision_hint, read_ir
from vitslim.shapes import Result
from vitslim.targets.base import (
    ALL_PRECISIONS,
    Backend,
    ExportRequest,
    Judge,
    Opening,
    Target,
    Timing,
    register_target,
)
from vitslim.targets.input_format import InputFormat
from vitslim.targets.metadata import artifact_metadata
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.openvino.choices import note_choices, tell_choices
from vitslim.targets.openvino.quantization import blocks_of, quantized
from vitslim.targets.parity.bisect import Inside, Opened, inside_of
from vitslim.targets.parity.comparing import AS_WRITTEN, ChoicesOf, Form, compare
from vitslim.targets.parity.guarantee import Guarantee
from vitslim.targets.parity.result import ParityCheck
from vitslim.targets.quiet import captured
from vitslim.targets.record import ExportRecord, export_record_path, guaranteed
from vitslim.targets.sensitivity import Sensitivity, least_kept

CALIBRATION_IMAGES = 256

_NO_FLOAT16 = (
    "this processor has no float16: it was computed in float32, where values beyond 65,504 do not show; "
    "the ONNX file in fp16 (--to onnx) is checked for them"
)


class OpenVinoExport(Result):
    """A ``.xml`` file with its ``.bin``, written, loaded back and compared.

    Attributes:
        sensitivity: of INT8: what it loses, and which blocks stayed in float for that.
        size_bytes: of both files.
        settings: what OpenVINO ran with here.
    """

    file: str
    precision: Precision
    size_bytes: int
    sha256: str
    settings: dict[str, str]
    comparisons: list[ParityCheck]
    metadata: dict[str, str]
    sensitivity: Sensitivity | None = None


def write_ir(
    model: nn.Module,
    path: Path,
    images: Tensor,
    *,
    precision: Precision = "fp32",
    input_format: InputFormat = "normalized",
    metadata: Mapping[str, Any] | None = None,
    calibration: Tensor | None = None,
    judge: Judge | None = None,
) -> OpenVinoExport:
    """Write ``model`` for OpenVINO: images of any batch in, float32 logits (or features) out.

    The weights are float32, in fp16 float16; how a file is computed is said when it is compiled, by
    ``INFERENCE_PRECISION_HINT``. In int8 the products are quantised by NNCF. Bytes are normalised by OpenVINO's own
    pre-processing inside the file.

    Args:
        model: dense or converted; stays as it is.
        path: of the ``.xml`` file; the weights lie in ``.bin`` beside it, what was guaranteed in ``.xml.json``.
        images: some, normalised as the model expects; what is loaded back is compared on them.
        precision: of the arithmetic.
        input_format: what the file takes.
        metadata: further entries, see ``artifact_metadata``.
        calibration: images of the training set (n, c, h, w), normalised, from which int8 takes its ranges.
        judge: where int8 loses more than it allows, the blocks that it harms most stay in float, up to half of them.

    Raises:
        ConfigError: int8 without images for calibration.
        MissingDependencyError: openvino, nncf, onnx, onnxscript, onnxslim or onnxruntime is not installed.
        UnsupportedModelError: the model cannot be traced, or OpenVINO does not convert it.
        CheckFailedError: what was loaded back does not compute the same.
        CheckpointError: the files cannot be written; what lay there is unchanged.
    """
    entries = artifact_metadata(model, precision, metadata or {}, input_format=input_format)
    if precision == "int8" and (calibration is None or len(calibration) == 0):
        raise ConfigError("int8 takes its ranges from images of the training set, some hundreds; pass data (--data D)")
    with reported_as(path), scratch_beside(path) as folder:
        file = folder / path.name
        converted, sensitivity = _converted(model), None
        if calibration is None or precision != "int8":
            _save(_taking(input_format, converted, model), file, precision, entries)
        else:

            def loss_with(kept: Sequence[int]) -> float:
                _save(_taking(input_format, quantized(converted, calibration, kept), model), file, precision, entries)
                if judge is None:
                    return 0.0
                with OpenVinoRunner(file) as runner:
                    return judge.loss(runner)

            sensitivity = least_kept(blocks_of(converted), loss_with, judge.most if judge else 0.0)
        with OpenVinoRunner(file) as runner:
            comparisons = _require_same_numbers(model, runner, file, images)
            settings = runner.settings
        record = ExportRecord(
            precision=precision,
            input_format=input_format,
            model_sha256=tensors_sha256(model.state_dict()),
            sha256=file_sha256(file),
        )
        note, weights = export_record_path(file), file.with_suffix(".bin")
        note.write_text(json_text(record.model_dump(mode="json", exclude_none=True), note), "utf-8")
        size = file.stat().st_size + weights.stat().st_size
        targets = {note: export_record_path(path), weights: path.with_suffix(".bin"), file: path}
        replace_together(targets)
    return OpenVinoExport(
        file=path.name,
        precision=precision,
        size_bytes=size,
        sha256=record.sha256,
        settings=settings,
        comparisons=comparisons,
        metadata=entries,
        sensitivity=sensitivity,
    )


def _converted(model: nn.Module) -> Any:
    """The model as OpenVINO has it, of normalised images."""
    import openvino

    with tempfile.TemporaryDirectory(prefix="vitslim-openvino-") as folder:
        onnx = Path(folder) / "model.onnx"
        # Through ONNX: what OpenVINO makes of it is as fast as what it makes of torch's own program, in half the time.
        export_onnx(model, onnx, inline=True)
        try:
            with captured():
                converted = openvino.convert_model(onnx)
        except Exception as error:  # of OpenVINO's front ends
            raise UnsupportedModelError(f"OpenVINO cannot convert this {type(model).__name__}: {error}") from error
        note_choices(converted, onnx)
    return converted


def _taking(input_format: InputFormat, converted: Any, model: nn.Module) -> Any:
    """The same; for bytes with OpenVINO's pre-processing in front."""
    if input_format == "normalized":
        return converted
    import openvino
    from openvino.preprocess import PrePostProcessor

    image = preprocessing(model)
    steps = PrePostProcessor(converted)
    given = steps.input()
    given.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout(input_format[-4:].upper()))
    given.model().set_layout(openvino.Layout("NCHW"))
    before = given.preprocess().convert_element_type(openvino.Type.f32)
    # (x / 255 - mean) / std = (x - 255 mean) / (255 std)
    before.mean([255 * value for value in image.mean]).scale([255 * value for value in image.std])
    return steps.build()


def _save(converted: Any, file: Path, precision: Precision, entries: Mapping[str, str]) -> None:
    import openvino

    try:
        # The digest of the weights is known once they are written, and stands in the file beside them.
        for known in ({}, {WEIGHTS_DIGEST: ""}):
            if known:
                known = {WEIGHTS_DIGEST: file_sha256(file.with_suffix(".bin"))}
            converted.set_rt_info(json.dumps({**entries, **known}), METADATA)
            openvino.save_model(converted, file, compress_to_fp16=precision == "fp16")
    except RuntimeError as error:
        raise CheckpointError(f"OpenVINO cannot write {file.name}: {error}") from error


@contextmanager
def _telling(path: Path) -> Generator[ChoicesOf]:
    """A file whose outputs are also all indices that depend on scores."""
    with OpenVinoRunner(path, change=tell_choices) as runner:

        def run(images: Tensor) -> tuple[Tensor, list[Tensor]]:
            logits, *choices = runner.run_all(images)
            return logits.float(), choices

        yield run


@contextmanager
def _showing_inside(path: Path) -> Generator[tuple[OpenVinoRunner, Callable[[Tensor], Inside]]]:
    """A file whose outputs are also its choices, and whatever comes out of operators that are named after a module."""
    modules: list[str] = []

    def show(model: Any) -> None:
        tell_choices(model)
        told: list[Any] = []
        for one in model.get_ordered_ops():
            module, _, kind = str(one.get_friendly_name()).rpartition("/")
            is_shown = one.get_type_name() in ("MatMul", "Add") and one.get_output_element_type(0).is_real()
            if module and kind and is_shown:
                modules.append(module)
                told.append(one.output(0))
        model.add_outputs(told)

    with OpenVinoRunner(path, change=show) as runner:
        yield runner, lambda images: inside_of(runner.run_all(images), modules)


def _require_same_numbers(model: nn.Module, runner: OpenVinoRunner, path: Path, images: Tensor) -> list[ParityCheck]:
    form = iter([(AS_WRITTEN, runner, _telling(path))])
    report = compare(model, runner.name, form, Guarantee(None), images[:4], (1, 3), None, leaves_sizes_free=False)
    if not report.passed:
        raise CheckFailedError(f"{runner.name}.xml was not written: {'; '.join(report.failures())}")
    return report.checks


@register_target("openvino")
class OpenVinoTarget(Target):
    """A ``.xml`` file with its weights beside it, checked against its model before it is kept."""

    title = "OpenVINO IR"
    suffix = ".xml"
    needs = ("openvino", "onnx", "onnxscript", "onnxruntime", "onnxslim")
    int8_needs = ("nncf",)
    extra = "openvino"
    precisions = (*ALL_PRECISIONS, "int8")
    backends = (Backend("openvino", preference=1), Backend("openvino-throughput"))

    def name_parts(self, options: Mapping[str, Any]) -> list[str]:
        input_format = str(options.get("input_format", "normalized"))
        return [input_format] if input_format != "normalized" else []

    def write(self, request: ExportRequest, *, input_format: InputFormat = "normalized") -> OpenVinoExport:
        model = request.model()
        return write_ir(
            model,
            request.path,
            request.sample(model),
            precision=request.precision,
            input_format=input_format,
            metadata=request.metadata,
            calibration=None if request.calibration is None else request.calibration(CALIBRATION_IMAGES),
            judge=request.judge,
        )

    def load(self, path: Path, how: Opening) -> OpenVinoRunner:
        splits = how.backend == "openvino-throughput"
        return OpenVinoRunner(
            path, threads=how.threads, splits=splits, keeps_compiled=how.keeps_compiled, name=how.name
        )

    def open_to_time(self, model: nn.Module, folder: Path, how: Timing) -> tuple[OpenVinoRunner, Path | None]:
        path = folder / "model.xml"
        converted = _converted(model)
        if how.precision == "int8":
            # How fast it is does not depend on the ranges.
            converted = quantized(converted, ExportRequest(path, "int8", lambda: model).sample(model, 8))
        _save(converted, path, how.precision, artifact_metadata(model, how.precision, {}))
        return self.load(path, how.opening), path.with_suffix(".bin")

    def forms(self, path: Path, backend: str | None) -> Iterator[Form]:
        yield AS_WRITTEN, self.load(path, Opening(backend)), _telling(path)

    def inside(self, path: Path) -> Opened:
        return _showing_inside(path)

    def guarantee(self, path: Path, asked: Precision | None, model: nn.Module) -> Guarantee:
        core, network = read_ir(path)
        found = guaranteed(path, asked, model, says=metadata_of(network).get("precision"), holds=None)
        if found.precision == "fp16" and precision_hint(core, "fp16") == "f32":
            return replace(found, notes=(*found.notes, f"{path.name}: {_NO_FLOAT16}"))
        return found

    def describe(self, written: OpenVinoExport, request: ExportRequest) -> list[str]:
        worst = max(one.max_abs / (one.tolerance or 1.0) for one in written.comparisons)
        ran = ", ".join(f"{name} {value}" for name, value in written.settings.items())
        return [
            f"wrote {request.path} and {request.path.with_suffix('.bin').name} ({written.size_bytes / 2**20:.1f} MiB); "
            f"loaded back, it differs from the model by {100 * worst:.1f} % of what {written.precision} is allowed",
            f"OpenVINO ran it with {ran}",
            *([_NO_FLOAT16] if written.precision == "fp16" and "f32" in ran else []),
            *([] if written.sensitivity is None else written.sensitivity.lines()),
        ]
