"""Exports of a model: written, and compared with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from vitslim import checkpoint
from vitslim.arguments import checked
from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError, VitslimError
from vitslim.files import read_json
from vitslim.opening import ModelLike, open_model
from vitslim.pipeline.devices import device_named
from vitslim.pipeline.folder import RECIPE_FILE
from vitslim.pipeline.images import DataLike, data_config, default_data, sample_images, task_images
from vitslim.recipe import load_recipe
from vitslim.runtime import Precision
from vitslim.shapes import AnyPath, AtLeastOne
from vitslim.targets import TARGETS, ExportRequest, Target, find_backend, target_of
from vitslim.targets import verify as verify_file
from vitslim.targets.onnx.quantization import PRECISIONS as QUANTIZED
from vitslim.targets.parity.result import Departure, ParityReport

_BISECTED = 4
"""Images of which the layers are compared."""


@checked
def export(
    model: ModelLike,
    path: AnyPath | None = None,
    *,
    to: str = "onnx",
    precision: Precision | None = None,
    data: DataLike | None = None,
    max_drop: float = 1.0,
    overwrite: bool = False,
    **options: Any,
) -> Any:
    """Write a model for a runtime or server; for a saved folder it lies in ``export/`` beside the model.

    Args:
        model: a folder that was saved, a module, or a dense model's name; for engines also an ``.onnx`` file.
        path: of the file or folder to write.
        to: a target, see ``vitslim list targets``.
        precision: of weights and arithmetic; ``None`` for the target's own.
        data: images for targets that compare what they write with the model; built-in ones by default. ``int8`` takes
            its ranges from the training split, and is judged on the held-out one.
        max_drop: points of accuracy (of agreement with the model, without labels) that ``int8`` may lose.
        overwrite: replace what lies there.
        options: of the target: those of ``vitslim.targets.onnx.export.export_onnx`` for ``onnx``, the fields of
            ``vitslim.targets.tensorrt.options.EngineOptions`` for ``tensorrt`` and ``rtx``, ``device`` for
            ``aotinductor``; ``backend``, ``artifact``, ``name``, ``max_batch``, ``instances``, ``any_gpu`` for
            ``triton-server``.

    Returns:
        What is known of the file, as the target tells it: ``OnnxExport``, ``EngineRecord``, ``TritonRepository``...
        Of ``int8`` a ``QuantizedExport``; its ``failures`` say why a file lies in ``rejected``.

    Raises:
        ConfigError: an unknown target or option, no path for a model that is not a folder, or something that would be
            written over.
    """
    target, request = prepare_export(
        model, path, to=to, precision=precision, data=data, overwrite=overwrite, options=options
    )
    return write(target, request, options, model, data, max_drop)


def write(
    target: Target,
    request: ExportRequest,
    options: dict[str, Any],
    model: ModelLike,
    data: DataLike | None,
    drop: float,
) -> Any:
    """Write what was prepared; see ``export``."""
    if request.precision != "int8":
        return target.write(request, **options)
    from vitslim.pipeline.int8 import export_int8

    live = open_model(model)
    return export_int8(target, replace(request, model=lambda: live), options, data or _own_data(request.source), drop)


def _own_data(folder: Path | None) -> DataLike:
    """Those that the recipe in a folder names."""
    recipe = None if folder is None else folder / RECIPE_FILE
    section = load_recipe(recipe).data if recipe is not None and recipe.is_file() else None
    if section is None:
        raise ConfigError("int8 takes its ranges from images of the task and is judged on them; name them (--data D)")
    return data_config(section)


def prepare_export(
    model: ModelLike,
    path: str | Path | None,
    *,
    to: str,
    precision: str | None,
    data: DataLike | None,
    overwrite: bool,
    options: dict[str, Any],
) -> tuple[Target, ExportRequest]:
    """The target and what it is asked for, refused before a model is opened; see ``export``."""
    target = TARGETS.get(to)
    _check_options(target, options)
    source = None if isinstance(model, nn.Module) else Path(model)
    if source is not None and source.suffix != ".onnx" and not source.exists():
        source = None  # a dense model's name
    kind = _checked_precision(target, precision or target.default_precision(source), is_asked=precision is not None)
    if path is None and source is None:
        raise ConfigError("export needs a path (--out), except for a folder that vitslim.save wrote")
    place = Path(path) if path is not None else target.default_path(cast(Path, source), kind, options)
    target.check_path(place, overwrite=overwrite)
    target.require(kind)
    return target, ExportRequest(
        path=place,
        precision=kind,
        model=lambda: open_model(model),
        source=source,
        metadata=known_of(model),
        images=lambda count: _sample(model, data, count),
        overwrite=overwrite,
    )


def _sample(model: ModelLike, data: DataLike | None, count: int) -> Tensor:
    live = open_model(model)
    return sample_images(live, data or default_data(live), count)


def _checked_precision(target: Target, precision: str, *, is_asked: bool) -> Precision:
    if target.serves and is_asked:
        raise ConfigError(
            f"target {target.name!r} serves a file in the precision that it was exported in; export that first "
            f"(--to {' or '.join(target.serves)} --precision {precision}), then name it with --artifact"
        )
    kind: Precision | None = next((one for one in target.precisions if one == precision), None)
    if kind is not None:
        return kind
    wanted = ", ".join(target.precisions)
    if target.name in ("onnx", "tensorrt") and precision in QUANTIZED:
        wanted += f"; `vitslim quantize DIR --data D --precision {precision}` makes such an ONNX file for TensorRT"
    raise ConfigError(f"target {target.name!r} is not written in {precision}; wanted {wanted}")


def _check_options(target: Target, options: dict[str, Any]) -> None:
    known = target.option_names()
    unknown = sorted(set(options) - set(known))
    if unknown:
        takers = {one: [name for name, other in TARGETS.items() if one in other.option_names()] for one in unknown}
        hints = [f"; {one} goes with --to {' or '.join(names)}" for one, names in takers.items() if names]
        raise ConfigError(
            f"target {target.name!r} takes no {', '.join(unknown)}; its options are {', '.join(known) or 'none'}"
            + "".join(hints)
        )
    if "device" in options:
        device_named(options["device"])


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
    bisect: bool = False,
) -> ParityReport:
    """Compare exported files with the model on images of its task, at several batch sizes.

    The images are those of ``data``; else of the recipe that the model's folder was made by; else built-in ones. A note
    says which.

    Where no files are named these are all in ``export/`` that the backend reads, less those that only a GPU runs where
    there is none, those whose runtime is not installed, and those that bring code; a note names them.

    A file is compared as the precision in the record beside it; one without a record as ``precision``, or fp32. With
    ``bisect`` the layers of those that fail are compared too, to say where they first depart from the model.

    Raises:
        ConfigError: nothing was exported yet.
        MissingDependencyError: the runtime of a named file, or of all files, is not installed.
    """
    live = open_model(model)
    paths, skipped = _artifacts(model, artifacts, backend)
    sample = task_images(model, live, data, max(images, *batches))
    reports: list[ParityReport] = []
    for path in paths:
        try:
            reports.append(compare(live, [path], sample.images, batches, backend, precision))
        except MissingDependencyError as error:
            if artifacts is not None:
                raise
            skipped.append(f"{path.name} was not compared: {error}")
    if not reports:
        raise MissingDependencyError("; ".join(skipped))
    found = _joined(reports)
    if bisect and not found.passed:
        found = _with_departures(found, live, paths, sample.images, precision)
    compared = f"compared on {len(sample.images)} {sample.origin}"
    return found.model_copy(update={"notes": [compared, *found.notes, *skipped]})


def _with_departures(
    report: ParityReport, live: nn.Module, paths: Iterable[Path], images: Tensor, precision: Precision | None
) -> ParityReport:
    failed = {check.artifact for check in report.checks if not check.passed}
    departures: list[Departure] = []
    notes = [*report.notes]
    for path in (one for one in paths if one.name in failed):
        try:
            departures.append(target_of(path).bisect(live, path, images[:_BISECTED], precision=precision))
        except VitslimError as error:
            notes.append(f"{path.name} was not bisected: {error}")
    return report.model_copy(update={"departures": departures, "notes": notes})


def compare(
    live: nn.Module,
    paths: Iterable[Path],
    images: Tensor,
    batches: Sequence[int],
    backend: str | None = None,
    precision: Precision | None = None,
) -> ParityReport:
    """``verify`` for a model and images that are at hand."""
    return _joined(
        verify_file(live, path, images, batches=batches, precision=precision, backend=backend) for path in paths
    )


def _joined(reports: Iterable[ParityReport]) -> ParityReport:
    reports = list(reports)
    return ParityReport(
        passed=all(report.passed for report in reports),
        checks=[check for report in reports for check in report.checks],
        notes=list(dict.fromkeys(note for report in reports for note in report.notes)),
    )


def _artifacts(
    model: ModelLike, artifacts: str | Path | Sequence[str | Path] | None, backend: str | None
) -> tuple[list[Path], list[str]]:
    """The files to compare, and a note for each that is left out."""
    if artifacts is not None:
        given = [artifacts] if isinstance(artifacts, str | Path) else artifacts
        return [Path(path) for path in given], []
    if isinstance(model, nn.Module):
        raise ConfigError("verify needs the files to compare, or a folder that holds them")
    wanted = None if backend is None else find_backend(backend)[0]
    found: list[Path] = []
    notes: list[str] = []
    for path in sorted((Path(model) / "export").glob("*")):
        target = next((one for _, one in TARGETS.items() if one.reads(path)), None)
        if target is None or wanted not in (None, target):
            continue
        if wanted is None and target.is_code:
            notes.append(f"{path.name} was not compared: opening it runs code out of it; name it to allow that")
        elif wanted is None and target.backends[0].needs_gpu and not torch.cuda.is_available():
            notes.append(f"{path.name} was not compared: it runs on a GPU, none is here")
        else:
            found.append(path)
    if not found:
        to = "onnx" if wanted is None else wanted.name
        reasons = "".join(f"; {note}" for note in notes)
        raise ConfigError(f"{model} holds nothing to compare; run `vitslim export {model} --to {to}` first{reasons}")
    return found, notes
