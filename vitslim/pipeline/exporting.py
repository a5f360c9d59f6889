"""The verbs of artefacts: export writes them, verify compares them with the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from vitslim import checkpoint
from vitslim.arguments import checked
from vitslim.errors import CheckpointError, ConfigError
from vitslim.export import ParityCheck
from vitslim.export import verify as verify_artifact
from vitslim.files import read_json
from vitslim.opening import ModelLike, open_model
from vitslim.pipeline.images import DataLike, task_images
from vitslim.runtime import Precision
from vitslim.shapes import AnyPath, AtLeastOne, Result

if TYPE_CHECKING:
    from vitslim.export import OnnxExport
    from vitslim.runtime import EngineRecord


@overload
def export(
    model: ModelLike,
    path: str | Path | None = None,
    *,
    to: Literal["onnx"] = ...,
    precision: str | None = ...,
    **options: Any,
) -> OnnxExport: ...


@overload
def export(
    model: ModelLike, path: str | Path | None = None, *, to: str, precision: str | None = ..., **options: Any
) -> OnnxExport | EngineRecord: ...


@checked
def export(
    model: ModelLike, path: AnyPath | None = None, *, to: str = "onnx", precision: str | None = None, **options: Any
) -> OnnxExport | EngineRecord:
    """Write an artefact; for a saved folder it lies in ``export/`` beside the model.

    Args:
        model: a folder that was saved, a module, or a dense model's name.
        path: of the file.
        to: ``onnx`` or ``tensorrt``.
        precision: of weights and arithmetic; ``None`` for fp32 in ONNX files, fp16 in engines, since TensorRT fuses
            attention in fp16 and bf16 only.
        options: of ``vitslim.export.export_onnx``, or fields of ``vitslim.export.tensorrt.EngineOptions``.

    Raises:
        ConfigError: an unknown target, or no path for a model that is not a folder.
    """
    from vitslim.export import export_onnx
    from vitslim.pipeline.engines import export_engine

    if to == "tensorrt":
        return export_engine(model, path, **({} if precision is None else {"precision": precision}), **options)
    if to != "onnx":
        raise ConfigError(f"export to {to!r} is not known; wanted 'onnx' or 'tensorrt'")
    precision = precision or "fp32"
    if path is None:
        if isinstance(model, nn.Module) or not Path(model).is_dir():
            raise ConfigError("export needs a path, except for a folder that vitslim.save wrote")
        forms = {name: options[name] for name in ("images", "inline", "dynamic_image_size") if name in options}
        path = default_artifact(model, precision, **forms)
    options["metadata"] = {**known_of(model), **(options.get("metadata") or {})}
    return export_onnx(open_model(model), Path(path), precision=precision, **options)  # pyright: ignore[reportArgumentType]


def known_of(model: ModelLike) -> dict[str, Any]:
    """What a saved folder knows of its model beyond the model itself, for the metadata of a file."""
    if isinstance(model, nn.Module) or not checkpoint.is_saved_model(model):
        return {}
    names = checkpoint.load_config(model).class_names
    known: dict[str, Any] = {} if names is None else {"labels": names}
    metrics = Path(model) / "metrics.json"  # no such path beside a weights file
    if metrics.is_file():
        try:
            known["metrics"] = _Metrics.model_validate(read_json(metrics)).student.model_dump()
        except (CheckpointError, ValidationError):  # a file of that name that we did not write
            return known
    return known


class _Student(BaseModel):
    top1: float
    top5: float
    agreement: float | None
    images: int


class _Metrics(BaseModel):
    """What is read of metrics.json, which holds more."""

    student: _Student


def default_artifact(
    folder: str | Path,
    precision: str,
    *,
    images: str = "normalized",
    inline: bool = False,
    dynamic_image_size: bool = False,
) -> Path:
    """Where the ONNX file of a saved folder lies: ``export/model-inlined-uint8-nhwc-fp16.onnx``, less what is usual."""
    parts = {
        "inlined": inline,
        "any-size": dynamic_image_size,
        images: images != "normalized",
        precision: precision != "fp32",
    }
    return Path(folder) / "export" / f"{'-'.join(['model', *(part for part, told in parts.items() if told)])}.onnx"


class Verification(Result):
    """What ``verify`` found for all artefacts together, as it stands in parity.json."""

    passed: bool
    checks: list[ParityCheck]
    notes: list[str]

    def failures(self) -> list[str]:
        """One sentence per broken promise, however many batches and forms break it in the same way."""
        where: dict[tuple[str, str], list[str]] = {}
        for check in self.checks:
            form = "" if check.form == "as written" else f" ({check.form})"
            for failure in check.failures:
                where.setdefault((check.artifact, failure), []).append(f"batch {check.batch}{form}")
        return [f"{file}, {' and '.join(dict.fromkeys(places))}: {one}" for (file, one), places in where.items()]


@checked
def verify(
    model: ModelLike,
    artifacts: AnyPath | Sequence[AnyPath] | None = None,
    *,
    data: DataLike | None = None,
    images: AtLeastOne = 32,
    batches: Annotated[tuple[AtLeastOne, ...], Field(min_length=1)] = (1, 3),
    precision: Precision | None = None,
    backend: str | None = None,
) -> Verification:
    """Compare exported artefacts with the model on images of its task, at several batch sizes.

    The images are those of ``data``; else of the recipe that the model's folder was made by; else built-in ones. A note
    says which.

    Where no artefacts are named these are all in ``export/`` that the backend reads; engines among them only where
    there is a GPU, which a note says.

    A file is held to the precision that the record beside it promises; one without a record to ``precision``, or fp32.

    Raises:
        ConfigError: nothing was exported yet.
    """
    live = open_model(model)
    paths = _artifacts(model, artifacts, backend)
    sample = task_images(model, live, data, max(images, *batches))
    found = compare(live, paths, sample.images, batches, backend, precision)
    skipped = [] if artifacts is not None else _skipped_engines(model, backend)
    compared = f"compared on {len(sample.images)} {sample.origin}"
    return found.model_copy(update={"notes": [compared, *found.notes, *skipped]})


def compare(
    live: nn.Module,
    paths: Iterable[Path],
    images: Tensor,
    batches: Sequence[int],
    backend: str | None = None,
    precision: Precision | None = None,
) -> Verification:
    """``verify`` for a model and images that are at hand."""
    reports = [
        verify_artifact(live, path, images, batches=batches, precision=precision, backend=backend) for path in paths
    ]
    return Verification(
        passed=all(report.passed for report in reports),
        checks=[check for report in reports for check in report.checks],
        notes=list(dict.fromkeys(note for report in reports for note in report.notes)),
    )


def _skipped_engines(model: ModelLike, backend: str | None) -> list[str]:
    if isinstance(model, nn.Module) or backend is not None or torch.cuda.is_available():
        return []
    engines = sorted((Path(model) / "export").glob("*.engine"))
    return [f"{engine.name} was not compared: an engine runs on a GPU, none is here" for engine in engines]


def _artifacts(
    model: ModelLike, artifacts: str | Path | Sequence[str | Path] | None, backend: str | None
) -> list[Path]:
    if artifacts is not None:
        return [Path(artifacts)] if isinstance(artifacts, str | Path) else [Path(path) for path in artifacts]
    if isinstance(model, nn.Module):
        raise ConfigError("verify needs the artefacts to compare, or a folder that holds them")
    suffixes = [".engine"] if backend in ("tensorrt", "rtx") else [".onnx"]
    if backend is None and torch.cuda.is_available():
        suffixes.append(".engine")
    found = sorted(path for path in (Path(model) / "export").glob("*") if path.suffix in suffixes)
    if not found:
        target = "tensorrt" if suffixes == [".engine"] else "onnx"
        raise ConfigError(f"{model} holds no exported artefact; run `vitslim export {model} --to {target}` first")
    return found
