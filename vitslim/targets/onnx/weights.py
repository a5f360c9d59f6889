"""The weights of an ONNX file: inside it, or beside it where protobuf's 2 GB would not hold them."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitslim.errors import CheckpointError
from vitslim.files import json_text, replace_together, reported_as, scratch_beside
from vitslim.targets.record import ExportRecord, export_record_path

FILE_LIMIT = 2**31 - 2**24
"""Bytes that one ONNX file should hold at most: protobuf's limit for one message, less room for the graph."""

DATA_DIGEST = "external_data_sha256"
"""Metadata entry of a file whose weights lie beside it."""

_SMALL = 1024  # bytes; shapes, scalars and tables stay inside, where shape inference can read them
_PAGE = 4096  # bytes; runtimes map aligned tensors instead of copying them


@dataclass(frozen=True)
class Written:
    """What lies on the disk: the file, and the data beside it if there are any."""

    size_bytes: int
    sha256: str
    data_file: str | None = None
    data_bytes: int = 0
    data_sha256: str | None = None


def data_path(path: str | Path) -> Path:
    """Where the weights of a file lie that does not hold them itself: ``model.onnx.data``."""
    return Path(f"{path}.data")


def is_large(model: Any) -> bool:
    """Whether one file cannot hold the model's weights."""
    return _weight_bytes(model.graph.initializer) >= FILE_LIMIT


def write_model(path: str | Path, model: Any, record: Callable[[str], ExportRecord]) -> Written:
    """Write a model, with its large weights in ``data_path(path)`` where one file cannot hold them.

    All files or none: a failure leaves the old ones. A power cut leaves the old model, none at all, or the new one, and
    never one with the weights of another.

    Args:
        path: of the ``.onnx`` file.
        model: an ``onnx.ModelProto``.
        record: gives what is guaranteed, to be written beside it, for the file's SHA-256.

    Raises:
        CheckpointError: a file cannot be written; what lay there before is unchanged.
    """
    target = Path(path)
    with reported_as(target), scratch_beside(target) as folder:
        written, new = (_fill_pair if is_large(model) else _fill_file)(folder, target, model)
        note = folder / export_record_path(target).name
        note.write_text(json_text(record(written.sha256).model_dump(mode="json"), note), "utf-8")
        new = {note: export_record_path(target), **new}
        if written.data_file is None:
            replace_together(new)
            data_path(target).unlink(missing_ok=True)  # of an earlier, larger model
        else:
            _replace_pair(new, target, folder / "aside")
    return written


def external_files(model: Any, path: Path) -> list[Path]:
    """The files that hold weights of an ONNX file: plain ones beside it.

    Raises:
        CheckpointError: it names something else (a path, a link, itself), or what it names is not there. Such a file is
            never opened: it might be anybody's.
    """
    names = {entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"}
    for name in sorted(names):
        file = path.parent / name
        is_plain = Path(name).name == name and not file.is_symlink() and (file.is_file() or not file.exists())
        if not is_plain or name in (path.name, export_record_path(path).name):
            raise CheckpointError(
                f"{path.name} names {name!r} as the file of its weights; wanted a plain file beside it, with a name of "
                "its own. Do not use this file, or export the model again"
            )
        if not file.is_file():
            raise CheckpointError(
                f"{path.name} keeps its weights in {name}, which is not beside it; move both together"
            )
    return [path.parent / name for name in sorted(names)]


def without_weights(model: Any) -> Any:
    """A copy whose large weights became inputs: as good for types and shapes, and small.

    The given model is not copied on the way, so that this is cheap for weights of any size.
    """
    import onnx

    copy = onnx.ModelProto()
    _copy_fields(model, copy, except_for="graph")
    _copy_fields(model.graph, copy.graph, except_for="initializer")
    for tensor in model.graph.initializer:
        if _is_large_tensor(tensor):
            copy.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
        else:
            copy.graph.initializer.add().CopyFrom(tensor)
    return copy


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a message, of graphs, functions and attributes alike."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for one in value if field.is_repeated else [value]:
                yield from _tensors(one)


def _fill_file(folder: Path, path: Path, model: Any) -> tuple[Written, dict[Path, Path]]:
    content = model.SerializeToString()
    scratch = folder / path.name
    _write_through(scratch, [content])
    return Written(len(content), hashlib.sha256(content).hexdigest()), {scratch: path}


def _replace_pair(new: dict[Path, Path], path: Path, aside: Path) -> None:
    # Meanwhile there is no model at this path, so that none can meet the weights of another.
    if path.is_file():
        os.replace(path, aside)
    try:
        replace_together(new)
    except BaseException:
        if aside.is_file():
            os.replace(aside, path)
        raise


def _fill_pair(folder: Path, path: Path, model: Any) -> tuple[Written, dict[Path, Path]]:
    tensors = [tensor for tensor in model.graph.initializer if _is_large_tensor(tensor)]
    places = _places(tensors)
    lean = without_weights(model)
    del lean.graph.input[len(model.graph.input) :]
    for tensor, offset in zip(tensors, places, strict=True):
        _refer(lean.graph.initializer.add(), tensor, data_path(path).name, offset)
    digest = hashlib.sha256()
    for part in _padded(tensors, places):
        digest.update(part)
    # So that the file's own digest stands for its weights too.
    lean.metadata_props.add(key=DATA_DIGEST, value=digest.hexdigest())
    content = lean.SerializeToString()
    scratch, data = folder / path.name, folder / data_path(path).name
    _write_through(scratch, [content])
    size = _write_through(data, _padded(tensors, places))
    written = Written(len(content), hashlib.sha256(content).hexdigest(), data.name, size, digest.hexdigest())
    return written, {data: data_path(path), scratch: path}


def _write_through(path: Path, parts: Iterable[bytes]) -> int:
    """Write and wait for the disk, which reports at that time that it is full."""
    size = 0
    with path.open("wb") as handle:
        for part in parts:
            handle.write(part)
            size += len(part)
        handle.flush()
        os.fsync(handle.fileno())
    return size


def _places(tensors: Iterable[Any]) -> list[int]:
    places: list[int] = []
    end = 0
    for tensor in tensors:
        places.append(-(-end // _PAGE) * _PAGE)
        end = places[-1] + len(tensor.raw_data)
    return places


def _padded(tensors: Iterable[Any], places: Iterable[int]) -> Iterable[bytes]:
    end = 0
    for tensor, place in zip(tensors, places, strict=True):
        yield bytes(place - end)
        yield tensor.raw_data
        end = place + len(tensor.raw_data)


def _refer(entry: Any, tensor: Any, location: str, offset: int) -> None:
    import onnx

    entry.name, entry.data_type = tensor.name, tensor.data_type
    entry.dims.extend(tensor.dims)
    entry.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": str(offset), "length": str(len(tensor.raw_data))}.items():
        entry.external_data.add(key=key, value=value)


def _copy_fields(source: Any, target: Any, *, except_for: str) -> None:
    for field, value in source.ListFields():
        if field.name == except_for:
            continue
        if isinstance(value, str | bytes | int):
            setattr(target, field.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            getattr(target, field.name).extend(value)


def _weight_bytes(tensors: Iterable[Any]) -> int:
    return sum(len(tensor.raw_data) for tensor in tensors)


def _is_large_tensor(tensor: Any) -> bool:
    return len(tensor.raw_data) > _SMALL
