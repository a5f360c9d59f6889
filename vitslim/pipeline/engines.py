"""Engines as Python users ask for them: by a saved folder, a model, or an ONNX file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.export.forms import metadata_of
from vitslim.export.onnx_input import ImageForm, as_given_to, form_of
from vitslim.models import preprocessing
from vitslim.opening import ModelLike, open_model
from vitslim.runtime import BACKENDS, EngineRecord, Precision, Runner, load
from vitslim.runtime.engine import read_record
from vitslim.runtime.fit import require_refittable
from vitslim.shapes import AnyPath
from vitslim.validation import describe_faults

if TYPE_CHECKING:
    from vitslim.export.tensorrt import EngineOptions


def export_engine(model: ModelLike, path: str | Path | None = None, **options: Any) -> EngineRecord:
    """Build a TensorRT engine; for a saved folder it lies in ``export/`` beside the model.

    Args:
        model: a folder or file that vitslim saved, a module, a dense model's name, or a ``.onnx`` file, which is then
            built as it stands. Of everything else the ONNX file is temporary.
        path: of the ``.engine`` file.
        options: fields of ``vitslim.export.tensorrt.EngineOptions``; the precision by ``default_precision``.

    Raises:
        ConfigError: an unknown option, or no path for what is not a saved folder.
        VitslimError: see ``vitslim.export.tensorrt.build_engine``.
    """
    from vitslim.export.tensorrt import EngineOptions, build_engine
    from vitslim.plugin import plugin_library

    options = {"precision": default_precision(model), **options}
    try:
        asked = EngineOptions(**options)
    except ValidationError as error:
        raise ConfigError("; ".join(describe_faults(error, EngineOptions))) from None
    target = default_engine(model, asked.precision) if path is None else Path(path)
    if target.suffix != ".engine":
        raise ConfigError(f"{target}: an engine's file ends in .engine")
    if not isinstance(model, nn.Module) and Path(model).suffix == ".onnx":
        return build_engine(model, target, asked, plugin_library=plugin_library())
    with tempfile.TemporaryDirectory(prefix="vitslim-onnx-") as folder:
        file = Path(folder) / f"{target.stem}.onnx"
        _write_onnx(model, file, asked)
        return build_engine(file, target, asked, plugin_library=plugin_library())


@checked
def refit(engine: AnyPath, source: ModelLike, out: AnyPath | None = None) -> EngineRecord:
    """Give an engine other weights without building it again, or a stripped one its weights.

    Args:
        engine: that was built with ``refit=True`` or ``strip_plan=True``, for this machine's GPU.
        source: what has the weights: a folder that vitslim saved, a module, or, for an engine that was built from one,
            an ``.onnx`` file. From a folder or module the ONNX file is written again as for the build, so that nobody
            has to keep it.
        out: the file to write; ``None`` for ``engine`` itself.

    Raises:
        ConfigError: the engine's weights are fixed, or the source is another model.
        VitslimError: see ``vitslim.export.tensorrt.refit_engine``.
    """
    from vitslim.export.tensorrt import options_of, refit_engine
    from vitslim.plugin import plugin_library

    record = read_record(engine)
    library = plugin_library() if record.plugins.needs_library else None
    if not isinstance(source, nn.Module) and Path(source).suffix == ".onnx":
        return refit_engine(engine, source, out, plugin_library=library)
    # Refused before a model is opened for nothing.
    require_refittable(Path(engine), record)
    with tempfile.TemporaryDirectory(prefix="vitslim-onnx-") as folder:
        file = Path(folder) / f"{Path(engine).stem}.onnx"
        _write_onnx(source, file, options_of(record))
        return refit_engine(engine, file, out, plugin_library=library)


def default_precision(model: ModelLike) -> Precision:
    """That of an ONNX file, fp16 for everything else: TensorRT fuses attention in fp16 and bf16 only.

    Raises:
        CheckpointError: the ONNX file is missing or damaged.
    """
    from vitslim.export.tensorrt import EngineOptions, precision_of

    told = precision_of(model) if not isinstance(model, nn.Module) and Path(model).suffix == ".onnx" else None
    return told or EngineOptions().precision


def default_engine(model: ModelLike, precision: str) -> Path:
    """Where the engine of a saved folder, or of an ONNX file, lies.

    Raises:
        ConfigError: the model is neither.
    """
    from vitslim.pipeline.exporting import default_artifact

    if not isinstance(model, nn.Module) and Path(model).suffix == ".onnx":
        return Path(model).with_suffix(".engine")
    if isinstance(model, nn.Module) or not Path(model).is_dir():
        raise ConfigError("export needs a path, except for a folder that vitslim.save wrote")
    return default_artifact(model, precision).with_suffix(".engine")


def _write_onnx(model: ModelLike, file: Path, options: EngineOptions) -> None:
    from vitslim.export import export_onnx
    from vitslim.pipeline.exporting import known_of

    export_onnx(
        open_model(model),
        file,
        precision=options.precision,
        dynamic_image_size=options.image_size is not None,
        metadata=known_of(model),
    )


class RunnerModule(nn.Module):
    """A runner in a module's clothes, for what measures modules."""

    def __init__(self, runner: Runner, model: nn.Module) -> None:
        super().__init__()
        self.runner = runner
        self.num_classes = getattr(model, "num_classes", 0)
        self.preprocessing = preprocessing(model)
        self.form: ImageForm = form_of(metadata_of(runner))
        # Who measures a module finds its device by its first parameter.
        self.place = nn.Parameter(torch.empty(0, device=runner.device), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images``; more than the file takes at once are run in parts."""
        least, most = _batches(self.runner)
        given = images
        if self.form != "normalized":
            given = as_given_to(self.form, images.cpu(), self.preprocessing)[0].to(images.device)
        return torch.cat([self._run(part, least) for part in given.split(most or len(given))])

    def _run(self, part: Tensor, least: int) -> Tensor:
        # Too few are filled up, and what was filled in is dropped again.
        rows = torch.arange(max(least, len(part)), device=part.device) % len(part)
        return self.runner.run(part[rows])[: len(part)]


def _batches(runner: Runner) -> tuple[int, int | None]:
    """The least and the most images that a runner takes; ``None`` for any number."""
    record = getattr(runner, "record", None)
    if isinstance(record, EngineRecord):
        return record.profiles[0].min[0], record.profiles[0].max[0]
    fixed = runner.inputs[0].batch
    return fixed or 1, fixed


def open_backend(model: ModelLike, backend: str, on_skip: Callable[[str], object] | None = None) -> Runner:
    """The runner of a saved folder or exported file; ``auto`` takes the best backend that is here.

    Raises:
        ConfigError: an unknown backend, or a model that was not saved.
    """
    if isinstance(model, nn.Module):
        raise ConfigError(f"backend {backend!r} opens saved folders and files; save the model and export it first")
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(f"backend {backend!r} is not known; wanted one of auto, {', '.join(BACKENDS)}")
    return load(model, backend=None if backend == "auto" else backend, on_skip=on_skip)
