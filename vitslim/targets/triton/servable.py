"""What a server has to know of an exported file: inputs and outputs, batches, what it is bound to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import parse_json
from vitslim.runtime.engine import EngineRecord, TensorRecord, read_record, record_path
from vitslim.runtime.fit import misfits, require_weights, require_whole
from vitslim.runtime.machine import this_machine
from vitslim.runtime.tensorrt_api import TITLES
from vitslim.targets.onnx.reading import metadata_in, read_header
from vitslim.targets.onnx.weights import external_files

if TYPE_CHECKING:
    from onnx import ValueInfoProto

SUFFIXES: dict[str, str] = {"onnx": ".onnx", "tensorrt": ".engine"}


@dataclass(frozen=True)
class Tensor:
    """An input or output: its element type as ONNX names it (``FLOAT``), its sizes without the batch, -1 for any."""

    name: str
    element: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class BatchRange:
    """How many images one call takes, and the number the file was tuned for, where that is known."""

    least: int
    best: int | None
    most: int | None

    @property
    def is_fixed(self) -> bool:
        return self.least == self.most


@dataclass(frozen=True)
class Servable:
    """An exported file, described for a server.

    Args:
        path: the file.
        backend: the target that wrote it.
        beside: files that must lie in the same folder, with their names unchanged.
        inputs: as the file declares them.
        outputs: as the file declares them.
        batch: numbers of images.
        metadata: what the file says about itself.
        engine: the record of an engine.
    """

    path: Path
    backend: str
    beside: tuple[Path, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: BatchRange
    metadata: Mapping[str, str]
    engine: EngineRecord | None = None

    @property
    def labels(self) -> list[str] | None:
        """The names of the classes in order, where the file knows them."""
        return json.loads(self.metadata["labels"]) if "labels" in self.metadata else None


def choose_artifact(folder: Path, backend: str = "auto") -> Path:
    """The one exported file of a saved folder; with ``auto`` an engine comes before an ONNX file.

    Raises:
        ConfigError: there is none, or more than one; the message says what to type.
    """
    if backend not in ("auto", *SUFFIXES):
        raise ConfigError(f"backend {backend!r} is not known; wanted auto, {', '.join(SUFFIXES)}")
    for suffix in (".engine", ".onnx") if backend == "auto" else (_suffix(backend),):
        found = sorted((folder / "export").glob(f"*{suffix}"))
        if backend == "auto" and suffix == ".engine":
            found = [path for path in found if _is_for_servers(path)]
        if len(found) > 1:
            names = ", ".join(f"export/{path.name}" for path in found)
            raise ConfigError(f"{folder} holds {names}; say which with --artifact FILE (artifact=...)")
        if found:
            return found[0]
    target = "tensorrt" if backend == "tensorrt" else "onnx"
    raise ConfigError(f"{folder} holds no {target} file yet; run `vitslim export {folder} --to {target}` first")


def read_servable(path: str | Path, *, any_gpu: bool = False) -> Servable:
    """Describe an ``.onnx`` or ``.engine`` file for a server.

    Args:
        path: of the file.
        any_gpu: take an engine although this machine has another GPU than it was built for.

    Raises:
        ConfigError: another suffix, or an engine that Triton Inference Server does not load.
        CheckpointError: a file is missing, damaged, or not the one that its record describes; or an engine has no
            weights yet, or was built for another GPU than this machine has.
        MissingDependencyError: onnx is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; export the model first")
    if path.suffix == ".onnx":
        return _of_onnx(path)
    if path.suffix == ".engine":
        return _of_engine(path, any_gpu)
    raise ConfigError(f"{path.name}: servers are given .onnx or .engine files")


def _suffix(backend: str) -> str:
    return ".onnx" if backend == "onnx" else ".engine"


def _is_for_servers(engine: Path) -> bool:
    return not record_path(engine).is_file() or read_record(engine).flavor == "tensorrt"


def _of_onnx(path: Path) -> Servable:
    model = read_header(path)
    values = [*model.graph.input, *model.graph.output]
    if not (model.graph.input and model.graph.output and all(value.type.tensor_type.shape.dim for value in values)):
        raise CheckpointError(f"{path} is not an ONNX file with an input and an output; export the model again")
    inputs = tuple(_tensor(value) for value in model.graph.input)
    least = _first_size(model.graph.input[0])
    return Servable(
        path=path,
        backend="onnx",
        beside=tuple(external_files(model, path)),
        inputs=inputs,
        outputs=tuple(_tensor(value) for value in model.graph.output),
        batch=BatchRange(1 if least is None else least, None, least),
        metadata=_readable(path, metadata_in(model)),
    )


def _readable(path: Path, metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The metadata of a file, once what is written on is known to be what vitslim writes."""
    lists = [key for key in ("image_size", "labels") if not _is_json(metadata.get(key, "[]"), list)]
    errors = lists + ([] if _is_json(metadata.get("input", "{}"), dict) else ["input"])
    if "image_size" in metadata:
        errors += [f"no {key}" for key in ("interpolation", "crop_pct", "mean", "std") if key not in metadata]
    if errors:
        raise CheckpointError(
            f"{path.name} does not say of itself what vitslim writes ({', '.join(errors)}); export the model again"
        )
    return metadata


def _is_json(text: str, kind: type[object]) -> bool:
    try:
        return isinstance(parse_json(text), kind)
    except ValueError:
        return False


def _tensor(value: ValueInfoProto) -> Tensor:
    from onnx import TensorProto

    kind = value.type.tensor_type
    if kind.elem_type not in TensorProto.DataType.values():
        raise CheckpointError(f"{value.name!r} is of type {kind.elem_type}, which ONNX has not; export the model again")
    sizes = tuple(one.dim_value if one.HasField("dim_value") else -1 for one in kind.shape.dim)
    return Tensor(value.name, TensorProto.DataType.Name(kind.elem_type), sizes[1:])


def _first_size(value: ValueInfoProto) -> int | None:
    first = value.type.tensor_type.shape.dim[0]
    return first.dim_value if first.HasField("dim_value") else None


def _of_engine(path: Path, any_gpu: bool) -> Servable:
    record = read_record(path)
    if record.flavor != "tensorrt":
        raise ConfigError(
            f"{path.name} was built for {TITLES[record.flavor]}, which Triton Inference Server does not load; "
            "build one with --to tensorrt, or serve the ONNX file"
        )
    require_whole(path, record)
    require_weights(path, record)
    _require_gpu(path, record, any_gpu)
    first = record.profiles[0]
    return Servable(
        path=path,
        backend="tensorrt",
        beside=(),
        inputs=tuple(_of_record(tensor) for tensor in record.inputs),
        outputs=tuple(_of_record(tensor) for tensor in record.outputs),
        batch=BatchRange(first.min[0], first.opt[0], first.max[0]),
        metadata=_readable(path, record.metadata),
        engine=record,
    )


def _of_record(tensor: TensorRecord) -> Tensor:
    element = tensor.dtype.upper().replace("FLOAT32", "FLOAT")
    return Tensor(tensor.name, element, tuple(tensor.shape[1:]))


def _require_gpu(path: Path, record: EngineRecord, any_gpu: bool) -> None:
    machine = this_machine()
    if any_gpu or machine.gpu is None:
        return
    # The server brings a TensorRT of its own, so the version that is installed here does not matter.
    differences = misfits(record, machine, record.tensorrt)
    if differences:
        raise CheckpointError(
            f"{path.name} does not fit this machine: {'; '.join(differences)}. Build it here: "
            f"{record.rebuild_command()}; or, for a server that has its GPU, pass --any-gpu"
        )
