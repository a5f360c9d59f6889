"""The verbs that hand a saved model to what serves it, as Python users call them: deploy, quantize."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from vitslim import checkpoint
from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.opening import ModelLike, open_model
from vitslim.pipeline.devices import device_named
from vitslim.pipeline.images import DataLike, default_data, open_loader, sample_images
from vitslim.runtime import Precision
from vitslim.shapes import AnyPath, AtLeastOne, NoneOrMore, Seed

if TYPE_CHECKING:
    from vitslim.deploy import AotPackage, ProgramExport, QuantizedOnnx, Servable, TritonRepository

_COMPARED = 8  # images on which a program that was loaded back is held against its model


@checked
def deploy(
    model: ModelLike, *, to: str, out: AnyPath | None = None, overwrite: bool = False, **options: Any
) -> TritonRepository | ProgramExport | AotPackage:
    """Write what a server or a program of its own loads.

    Args:
        model: a folder that ``save`` wrote; for ``torch-export`` and ``aotinductor`` also a module or a model's name.
        to: ``triton-server`` (a model repository for NVIDIA Triton Inference Server, from what ``export`` wrote),
            ``torch-export`` (a ``.pt2`` program), ``aotinductor`` (a compiled package).
        out: the repository, or the file; programs of a saved folder lie in its ``export/`` by default.
        overwrite: replace what lies there.
        options: of ``triton-server``: backend, artifact, name, max_batch, instances, any_gpu;
            of ``torch-export``: precision, data; of ``aotinductor``: precision, data, device.

    Raises:
        ConfigError: an unknown target or option, nothing exported yet, or something that would be written over.
    """
    if to not in _TARGETS:
        raise ConfigError(f"deploy to {to!r} is not known; wanted {', '.join(_TARGETS)}")
    target = _TARGETS[to]
    known = [name for name, one in inspect.signature(target).parameters.items() if one.kind == one.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"deploy to {to} takes no {', '.join(unknown)}; its options are {', '.join(known)}")
    return target(model, out, overwrite, **options)


@checked
def quantize(
    folder: AnyPath,
    data: DataLike,
    *,
    precision: str = "fp8",
    others: str = "fp16",
    out: AnyPath | None = None,
    artifact: AnyPath | None = None,
    images: AtLeastOne = 512,
    compare: NoneOrMore = 64,
    seed: Seed = 0,
    overwrite: bool = False,
    **options: Any,
) -> QuantizedOnnx:
    """Quantize the exported ONNX file of a saved folder with NVIDIA Model-Optimizer.

    Args:
        folder: that ``save`` wrote, with ``export/model.onnx`` in it.
        data: calibration takes images of its training split, the comparison of its held-out one.
        precision: ``fp8`` or ``int8``, of the matrix products.
        others: of everything else.
        out: the new file; ``export/quantized/model-fp8.onnx`` by default, apart from the files that keep parity.
        artifact: another ONNX file than ``export/model.onnx``.
        images: for the calibration; without augmentation.
        compare: held-out images on which the new file is held against the model; 0 for none.
        seed: of the choice of calibration images.
        overwrite: replace what lies there.
        options: python, providers, calibration_file, see ``vitslim.deploy.quantize_onnx``.

    Raises:
        MissingDependencyError: nvidia-modelopt is not in the environment of ``python``.
        ConfigError: no ONNX file yet, an unknown precision, or something that would be written over.
    """
    from vitslim.deploy.quantization import PRECISIONS, quantize_onnx, require_modelopt

    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not offered; wanted {' or '.join(PRECISIONS)}")
    kept = _precision_named(others)
    folder = _saved_folder(folder)
    source = Path(artifact) if artifact else folder / "export" / "model.onnx"
    if not source.is_file():
        raise ConfigError(f"{source} does not exist; run `vitslim export {folder} --to onnx` first")
    target = Path(out) if out else folder / "export" / "quantized" / f"model-{precision}.onnx"
    _refuse_existing(target, overwrite)
    # Asked before images are read.
    require_modelopt(str(options.get("python") or sys.executable))
    model = checkpoint.load(folder)
    return quantize_onnx(
        source,
        target,
        _calibration_images(model, data, images, seed),
        precision=precision,
        others=kept,
        model=model,
        images=sample_images(model, data, compare) if compare else None,
        **options,
    )


@checked
def _to_triton(
    model: ModelLike,
    out: str | Path | None,
    overwrite: bool,
    *,
    backend: str = "auto",
    artifact: AnyPath | None = None,
    name: str | None = None,
    max_batch: AtLeastOne | None = None,
    instances: AtLeastOne = 1,
    any_gpu: bool = False,
) -> TritonRepository:
    from vitslim.deploy import choose_artifact, write_model_repository
    from vitslim.deploy.triton import check_name

    folder = _saved_folder(model)
    if out is None:
        raise ConfigError("deploy to triton-server needs out (--out), the model repository")
    name = folder.resolve().name if name is None else name
    check_name(name)
    path = Path(artifact) if artifact else choose_artifact(folder, backend)
    return write_model_repository(
        _servable(path, backend, any_gpu),
        out,
        name=name,
        max_batch=max_batch,
        instances=instances,
        labels=checkpoint.load_config(folder).class_names,
        overwrite=overwrite,
    )


def _servable(path: Path, backend: str, any_gpu: bool) -> Servable:
    from vitslim.deploy import read_servable
    from vitslim.deploy.servable import SUFFIXES

    if backend != "auto" and backend in SUFFIXES and path.suffix != SUFFIXES[backend]:
        raise ConfigError(f"{path.name} is no file for backend {backend}; wanted one that ends in {SUFFIXES[backend]}")
    return read_servable(path, any_gpu=any_gpu)


@checked
def _to_program(
    model: ModelLike,
    out: str | Path | None,
    overwrite: bool,
    *,
    precision: str = "fp32",
    data: DataLike | None = None,
) -> ProgramExport:
    from vitslim.deploy import write_program

    kind = _precision_named(precision)
    path = _program_path(model, out, "model", precision, overwrite)
    live = open_model(model)
    return write_program(live, path, _few_images(live, data), precision=kind)


@checked
def _to_package(
    model: ModelLike,
    out: str | Path | None,
    overwrite: bool,
    *,
    precision: str = "fp32",
    data: DataLike | None = None,
    device: str = "cpu",
) -> AotPackage:
    from vitslim.deploy import compile_package
    from vitslim.deploy.aotinductor import require_compiler

    kind = _precision_named(precision)
    place = device_named(device)
    require_compiler()
    path = _program_path(model, out, f"model-aoti-{place.type}", precision, overwrite)
    live = open_model(model)
    return compile_package(live, path, _few_images(live, data), precision=kind, device=place)


_TARGETS: dict[str, Callable[..., Any]] = {
    "triton-server": _to_triton,
    "torch-export": _to_program,
    "aotinductor": _to_package,
}


def _saved_folder(model: ModelLike) -> Path:
    if isinstance(model, nn.Module) or not Path(model).is_dir() or not checkpoint.is_saved_model(model):
        what = f"a {type(model).__name__}" if isinstance(model, nn.Module) else str(model)
        raise ConfigError(f"{what} is no folder that vitslim wrote; wanted one (`vitslim convert ... --out DIR`)")
    return Path(model)


def _program_path(model: ModelLike, out: str | Path | None, stem: str, precision: str, overwrite: bool) -> Path:
    if out is None and (isinstance(model, nn.Module) or not Path(model).is_dir()):
        raise ConfigError("deploy needs out (--out), except for a folder that vitslim.save wrote")
    name = stem if precision == "fp32" else f"{stem}-{precision}"
    path = Path(str(model)) / "export" / f"{name}.pt2" if out is None else Path(out)
    if path.suffix != ".pt2":
        raise ConfigError(f"{path}: torch opens files that end in .pt2; wanted such a path")
    _refuse_existing(path, overwrite)
    return path


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; wanted the path of a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; pass --overwrite (overwrite=True) or another --out")


def _precision_named(name: str) -> Precision:
    known: tuple[Precision, ...] = get_args(Precision)
    for precision in known:
        if precision == name:
            return precision
    raise ConfigError(f"precision {name!r} is not one; wanted {', '.join(known)}")


def _few_images(model: nn.Module, data: DataLike | None) -> Tensor:
    return sample_images(model, data or default_data(model), _COMPARED)


def _calibration_images(model: nn.Module, data: DataLike, count: int, seed: int) -> Tensor:
    loader = open_loader(data, model, split="train", batch_size=min(count, 64), limit=count, labels="ignore", seed=seed)
    return torch.cat([batch.images for batch in loader])[:count]
