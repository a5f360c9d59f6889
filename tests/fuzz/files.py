"""Damaged files: ONNX graphs, safetensors, images, and folders of images."""

import os
import random
from pathlib import Path
from typing import Any

import onnx
import torch
from PIL import Image

from tests.fuzz import values
from tests.fuzz.place import IMAGE_FOLDER_CLASSES, Case
from vitslim.data import open_data
from vitslim.models import Preprocessing

PREPROCESSING = Preprocessing(
    image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=0.9, channels=3
)
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")


def case(rng: random.Random, folder: Path) -> Case:
    """A folder in which one file was damaged, opened by what reads it."""
    return rng.choice([_onnx, _onnx, _weights, _images])(rng, folder)


def _onnx(rng: random.Random, folder: Path) -> Case:
    path = folder / "student" / "export" / "model.onnx"
    if rng.random() < 0.4:
        path.write_bytes(values.changed_bytes(path.read_bytes(), rng))
        what = "bytes"
    else:
        what = _change_graph(path, rng)
    act = rng.choice([_run, _run, _verify, _serve])
    return Case(f"{act.__name__} with an ONNX file of changed {what}", lambda: act(folder, path))


def _change_graph(path: Path, rng: random.Random) -> str:
    model: Any = onnx.load(path)
    graph = model.graph
    image, logits = graph.input[0], graph.output[0]
    what = rng.choice(["metadata", "sizes", "opset", "name", "node", "tensor", "type", "external"])
    if what == "metadata":
        entry = rng.choice(model.metadata_props)
        entry.value = values.text(rng).encode(errors="replace").decode()
    elif what == "sizes":
        size = rng.choice(rng.choice([image, logits]).type.tensor_type.shape.dim)
        size.dim_value = rng.choice([0, -1, 1, 7, 2**31, 2**62])
    elif what == "opset":
        model.opset_import[0].version = rng.choice([0, -1, 1, 99, 2**40])
    elif what == "name":
        holder = rng.choice([image, logits, rng.choice(graph.node), rng.choice(graph.initializer)])
        holder.name = rng.choice(["", "images", "logits", "é" * 300])
    elif what == "node":
        node = rng.choice(graph.node)
        node.op_type = rng.choice(["", "Nothing", "Softmax", "MatMul", "Loop"])
    elif what == "tensor":
        tensor = rng.choice(graph.initializer)
        tensor.dims[:] = rng.choice([[], [-1], [2**40, 2**40], [3, 3]])
    elif what == "type":
        rng.choice([image, logits]).type.tensor_type.elem_type = rng.choice([0, 1, 2, 8, 10, 16, 99])
    else:
        tensor = rng.choice(graph.initializer)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=rng.choice(["", "nowhere", "../config.json", "/etc/passwd"]))
    path.write_bytes(model.SerializeToString())
    return what


def _run(folder: Path, path: Path) -> None:
    import vitslim

    with vitslim.open_runner(path) as runner:
        runner.run(torch.zeros(2, 3, 32, 32))


def _verify(folder: Path, path: Path) -> None:
    import vitslim

    vitslim.verify(folder / "student", path, images=2, batches=(1,))


def _serve(folder: Path, path: Path) -> None:
    import vitslim

    vitslim.export(folder / "student", folder / "models", to="triton-server", artifact=path)


def _weights(rng: random.Random, folder: Path) -> Case:
    import vitslim

    student = folder / "student"
    path = student / "model.safetensors"
    path.write_bytes(values.changed_bytes(path.read_bytes(), rng))
    if rng.random() < 0.5:
        return Case("load of a folder with changed weights", lambda: vitslim.load(student))
    (student / "config.json").unlink()
    return Case("load of changed weights alone", lambda: vitslim.load(path))


def _images(rng: random.Random, folder: Path) -> Case:
    root = folder / "images" / "val"
    for _ in range(rng.choice([1, 1, 2, 10])):
        place = root / rng.choice(IMAGE_FOLDER_CLASSES) / f"{rng.randrange(9)}.png"
        if place.is_dir() and not place.is_symlink():
            continue
        place.unlink(missing_ok=True)
        how = rng.randrange(8)
        if how == 0:
            os.mkfifo(place)
        elif how == 1:
            place.symlink_to(rng.choice(["/dev/zero", "..", "nowhere", place.name, "/dev/null"]))
        elif how == 2:
            place.mkdir()
        elif how == 3:
            place.write_bytes(rng.randbytes(rng.choice([0, 1, 100])))
        else:
            mode = rng.choice(["RGB", "L", "1", "P", "LA", "RGBA", "I;16", "I", "F", "CMYK"])
            _write_image(place, mode, rng.choice([(1, 1), (40, 40), (1, 20000), (3, 500)]), rng)
    share = rng.choice([0.01, 0.5, 1.0])
    limit = rng.choice([None, None, 1, 3, 10**18, 0, -1])
    return Case(f"images in {root} with limit={limit}", lambda: _read(root.parent, share, limit))


def _write_image(path: Path, mode: str, size: tuple[int, int], rng: random.Random) -> None:
    try:
        Image.new(mode, size).save(path, rng.choice(FORMATS))
    except (OSError, KeyError, ValueError):  # not every format has every mode, or such sizes
        Image.new("RGB", (40, 40)).save(path, "PNG")
    if rng.random() < 0.4:
        path.write_bytes(values.changed_bytes(path.read_bytes(), rng))


def _read(root: Path, share: float, limit: int | None) -> None:
    from vitslim.data import DataConfig

    config = DataConfig(source=str(root), batch_size=3, max_corrupt_share=share)
    for batch in open_data(config, split="val", preprocessing=PREPROCESSING, limit=limit):
        assert batch.images.isfinite().all()
