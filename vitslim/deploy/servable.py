"""What a server has to know of an exported file: inputs and outputs, batches, what it is bound to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError
from vitslim.runtime.engine import EngineRecord, file_sha256, misfits, read_record, record_path
from vitslim.runtime.machine import this_machine
from vitslim.runtime.tensorrt_api import TITLES

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

Backend = Literal["onnx", "tensorrt"]
SUFFIXES: dict[Backend, str] = {"onnx": ".onnx", "tensorrt": ".engine"}


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
        backend: which kind of file it is.
        beside: files that must lie in the same folder, with their names unchanged.
        inputs: as the file declares them.
        outputs: as the file declares them; of an engine as the model declares them.
        batch: numbers of images.
        metadata: what the file says about itself.
        engine: the record of an engine.
    """

    path: Path
    backend: Backend
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


def read_servable(path: str | Path, *, any_gpu: bool = False, outputs: tuple[Tensor, ...] | None = None) -> Servable:
    """Describe an ``.onnx`` or ``.engine`` file for a server.

    Args:
        path: of the file.
        any_gpu: take an engine although this machine has another GPU than it was built for.
        outputs: of an engine that lies beside no ONNX file of its own, which could tell them.

    Raises:
        ConfigError: another suffix, or an engine that Triton Inference Server does not load.
        CheckpointError: a file is missing, damaged, or not the one that its record describes; or an engine was built
            for another GPU than this machine has.
        MissingDependencyError: onnx is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; export the model first")
    if path.suffix == ".onnx":
        return _of_onnx(path)
    if path.suffix == ".engine":
        return _of_engine(path, any_gpu, outputs)
    raise ConfigError(f"{path.name}: servers are given .onnx or .engine files")


def _suffix(backend: str) -> str:
    return ".onnx" if backend == "onnx" else ".engine"


def _is_for_servers(engine: Path) -> bool:
    return not record_path(engine).is_file() or read_record(engine).flavor == "tensorrt"


def _of_onnx(path: Path) -> Servable:
    model = read_graph(path)
    inputs = tuple(_tensor(value) for value in model.graph.input)
    least = _first_size(model.graph.input[0])
    return Servable(
        path=path,
        backend="onnx",
        beside=_data_files(model, path),
        inputs=inputs,
        outputs=tuple(_tensor(value) for value in model.graph.output),
        batch=BatchRange(1 if least is None else least, None, least),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def read_graph(path: Path) -> ModelProto:
    """An ONNX file without the weights that lie beside it.

    Raises:
        CheckpointError: it is not an ONNX file with an input and an output.
        MissingDependencyError: onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise MissingDependencyError("reading an ONNX file needs onnx: pip install 'vitslim[onnx]'") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise CheckpointError(f"{path} is not an ONNX file, or was cut short: {error}") from None
    if not model.graph.input or not model.graph.output:
        raise CheckpointError(f"{path} is not an ONNX file with an input and an output; export the model again")
    return model


def _data_files(model: ModelProto, path: Path) -> tuple[Path, ...]:
    names = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    files = tuple(path.parent / name for name in sorted(names))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{path.name} keeps its weights in {', '.join(missing)}, which is not beside it")
    return files


def _tensor(value: ValueInfoProto) -> Tensor:
    from onnx import TensorProto

    kind = value.type.tensor_type
    sizes = tuple(one.dim_value if one.HasField("dim_value") else -1 for one in kind.shape.dim)
    return Tensor(value.name, TensorProto.DataType.Name(kind.elem_type), sizes[1:])


def _first_size(value: ValueInfoProto) -> int | None:
    first = value.type.tensor_type.shape.dim[0]
    return first.dim_value if first.HasField("dim_value") else None


def _of_engine(path: Path, any_gpu: bool, outputs: tuple[Tensor, ...] | None) -> Servable:
    record = read_record(path)
    if record.flavor != "tensorrt":
        raise ConfigError(
            f"{path.name} was built for {TITLES[record.flavor]}, which Triton Inference Server does not load; "
            "build one with --flavor tensorrt, or serve the ONNX file"
        )
    if file_sha256(path) != record.engine_sha256:
        raise CheckpointError(
            f"{path.name} is not the file that {record_path(path).name} describes: it was cut short or changed; "
            f"build it again: {record.rebuild_command()}"
        )
    _require_gpu(path, record, any_gpu)
    origin = _origin(path, record)
    told = None if origin is None else _of_onnx(origin)
    if told is None and outputs is None:
        raise ConfigError(
            f"{path.name} does not tell its outputs, and the ONNX file it was built from is not beside it; "
            "deploy it from the folder of its model, or export the ONNX file again"
        )
    first = record.profiles[0]
    return Servable(
        path=path,
        backend="tensorrt",
        beside=(),
        inputs=told.inputs if told else tuple(_profiled(record)),
        outputs=told.outputs if told else outputs or (),
        batch=BatchRange(first.min[0], first.opt[0], first.max[0]),
        metadata=record.metadata,
        engine=record,
    )


def _profiled(record: EngineRecord) -> list[Tensor]:
    # An engine's record has no element types: its ends are float32 unless its preprocessing takes bytes.
    form = json.loads(record.metadata.get("input", "{}")).get("form", "normalized")
    element = "FLOAT" if form == "normalized" else "UINT8"
    return [
        Tensor(
            one.name,
            element,
            tuple(least if least == most else -1 for least, most in zip(one.min[1:], one.max[1:], strict=True)),
        )
        for one in record.profiles
    ]


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


def _origin(path: Path, record: EngineRecord) -> Path | None:
    return next((file for file in sorted(path.parent.glob("*.onnx")) if file_sha256(file) == record.onnx_sha256), None)
