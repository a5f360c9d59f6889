"""A model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import atomic_folder, write_text
from vitslim.plugin import plugin_library
from vitslim.runtime.engine import file_sha256
from vitslim.targets.triton.pbtxt import Name, map_field, text_format
from vitslim.targets.triton.readme import readme
from vitslim.targets.triton.result import TritonRepository
from vitslim.targets.triton.servable import Servable, Tensor

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
VERSION = "1"
MAX_BATCH = 64
"""Of a file that takes any batch: beyond it a GPU is busy with one batch, and waiting requests only wait longer."""

# Folder, metric label and part of a URL at once. Triton itself refuses little, and then fails late.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_FORBIDDEN_NAMES = ("con", "nul")
_BACKENDS = {"onnx": "onnxruntime", "tensorrt": "tensorrt"}
_FILES = {"onnx": "model.onnx", "tensorrt": "model.plan"}
_TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "UINT8": "UINT8", "INT64": "INT64", "INT32": "INT32"}
_QUEUE_DELAY_US = 1000  # µs; a ViT's forward takes longer, so nobody waits noticeably for a fuller batch
_STATED = ("image_size", "mean", "std", "interpolation", "crop_pct", "precision", "input", "base_model", "methods")


def write_model_repository(
    servable: Servable,
    out: str | Path,
    *,
    name: str,
    max_batch: int | None = None,
    instances: int = 1,
    labels: Sequence[str] | None = None,
    overwrite: bool = False,
) -> TritonRepository:
    """Add a model to a model repository; the whole folder of the model appears at once, or nothing.

    Args:
        servable: what is served.
        out: the repository; made when it is not there. Other models in it stay as they are.
        name: of the model, under which clients ask for it.
        max_batch: most images in one batch; ``None`` for what the engine takes, or ``MAX_BATCH``.
        instances: copies of the model on each device, which run at the same time.
        labels: of the classes, where the file does not tell them.
        overwrite: replace a model of that name, or write into a folder that is no model repository.

    Raises:
        ConfigError: a name that Triton cannot serve, a batch that the file does not take, a folder that would be
            written over.
        CheckpointError: the repository cannot be written; what lay there is unchanged. Or the file keeps its weights
            under the name that it gets itself.
    """
    repository = Path(out)
    check_name(name)
    _check_repository(repository, name, overwrite)
    if instances < 1:
        raise ConfigError(f"instances={instances}: wanted a number from 1")
    most = _max_batch(servable, max_batch)
    labels = _fitting_labels(labels if servable.labels is None else servable.labels, servable.outputs[0])
    _check_names(servable)
    library = _plugin(servable)
    config = model_config(servable, name=name, max_batch=most, instances=instances, has_labels=labels is not None)
    written = TritonRepository(
        repository=repository,
        name=name,
        backend=_BACKENDS[servable.backend],
        max_batch_size=most,
        preferred_batch_sizes=config.get("dynamic_batching", {}).get("preferred_batch_size", []),
        instances=instances,
        files=[],
        plugin=library is not None if _needs_library(servable) else None,
        command=_command(servable, name),
        notes=_notes(servable, name, library),
    )
    with atomic_folder(repository / name) as folder:
        write_text(folder / CONFIG, text_format(config))
        if labels is not None:
            write_text(folder / LABELS, "".join(f"{label}\n" for label in labels))
        version = folder / VERSION
        version.mkdir()
        shutil.copyfile(servable.path, version / _FILES[servable.backend])
        for file in servable.beside:
            shutil.copyfile(file, version / file.name)
        if library is not None:
            (folder / "plugins").mkdir()
            shutil.copyfile(library, folder / "plugins" / library.name)
        write_text(folder / "README.md", readme(servable, written))
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return written.model_copy(update={"files": [f"{name}/{file}" for file in files]})


def model_config(servable: Servable, *, name: str, max_batch: int, instances: int, has_labels: bool) -> dict[str, Any]:
    """``config.pbtxt`` as fields of Triton's ``ModelConfig``; ``max_batch`` 0 leaves batches to the client."""
    labels = LABELS if has_labels else None
    batching = {
        "preferred_batch_size": _preferred(servable, max_batch),
        "max_queue_delay_microseconds": _QUEUE_DELAY_US,
    }
    stated = {key: servable.metadata[key] for key in _STATED if key in servable.metadata}
    return {
        "name": name,
        "backend": _BACKENDS[servable.backend],
        "default_model_filename": _FILES[servable.backend],
        "max_batch_size": max_batch,
        "input": [_described(tensor, servable, max_batch) for tensor in servable.inputs],
        "output": [
            {**_described(tensor, servable, max_batch), "label_filename": labels if index == 0 else None}
            for index, tensor in enumerate(servable.outputs)
        ],
        **({"dynamic_batching": batching} if max_batch > 1 else {}),
        "instance_group": [
            # A GPU where the server has one; an engine runs nowhere else.
            {"count": instances, "kind": Name("KIND_GPU" if servable.backend == "tensorrt" else "KIND_AUTO")}
        ],
        # Read by clients from the server: how images become the input.
        "parameters": map_field(stated),
    }


def check_name(name: str) -> None:
    """Refuse a name that cannot be a folder, part of a URL and a label of a metric at once.

    Raises:
        ConfigError: with what is allowed.
    """
    if not _NAME.fullmatch(name) or name.lower() in _FORBIDDEN_NAMES or ".." in name:
        raise ConfigError(
            f"model name {name!r}: wanted up to 128 letters, digits, '_', '-' or '.', beginning with a letter or digit"
        )


def _check_names(servable: Servable) -> None:
    model = _FILES[servable.backend]
    if any(file.name.lower() == model for file in servable.beside):
        raise CheckpointError(
            f"{servable.path.name} keeps its weights in {model}, the name that it gets itself in the repository; "
            "export the model again"
        )


def _check_repository(repository: Path, name: str, overwrite: bool) -> None:
    if repository.exists() and not repository.is_dir():
        raise ConfigError(f"model repository {repository} is a file; name a folder")
    if overwrite or not repository.is_dir():
        return
    if (repository / name).exists():
        raise ConfigError(
            f"{repository} has a model {name!r} already; pass --overwrite (overwrite=True) or another --name"
        )
    entries = [path for path in repository.iterdir() if not path.name.startswith(".")]
    if entries and not any((path / CONFIG).is_file() for path in entries):
        raise ConfigError(
            f"{repository} is not empty and no model repository (no model in it has a {CONFIG}); "
            "pass --overwrite (overwrite=True) to write beside what is there, or another folder"
        )


def _max_batch(servable: Servable, wanted: int | None) -> int:
    batch = servable.batch
    title = servable.path.name
    if wanted is not None and wanted < 1:
        raise ConfigError(f"max_batch={wanted}: wanted a number from 1")
    if batch.is_fixed:
        if wanted not in (None, batch.most):
            raise ConfigError(f"{title} takes batch {batch.most} only; leave --max-batch out or export it again")
        return 0
    if batch.least > 1:
        raise ConfigError(
            f"{title} takes {batch.least} to {batch.most} images, a server gets single ones too; "
            f"build it with --batch 1:{batch.best}:{batch.most}"
        )
    if wanted is not None and batch.most is not None and wanted > batch.most:
        raise ConfigError(f"max_batch={wanted}: {title} takes at most {batch.most}; build it for more with --batch")
    return wanted or batch.most or MAX_BATCH


def _preferred(servable: Servable, max_batch: int) -> list[int]:
    # What the engine was tuned for. An ONNX file has no such sizes, and Triton's guide advises against naming any.
    tuned = (servable.batch.best, servable.batch.most) if servable.engine else ()
    return sorted({size for size in tuned if size is not None and 1 < size <= max_batch})


def _described(tensor: Tensor, servable: Servable, max_batch: int) -> dict[str, Any]:
    if tensor.element not in _TYPES:
        raise ConfigError(f"'{tensor.name}' holds {tensor.element}, for which Triton has no type here")
    sizes = list(tensor.sizes)
    dims = sizes if max_batch else [servable.batch.least, *sizes]
    return {"name": tensor.name, "data_type": Name(f"TYPE_{_TYPES[tensor.element]}"), "dims": dims}


def _fitting_labels(labels: Sequence[str] | None, output: Tensor) -> list[str] | None:
    if labels is None or output.name != "logits":
        return None
    if len(output.sizes) == 1 and output.sizes[0] not in (-1, len(labels)):
        raise ConfigError(f"{len(labels)} labels were given for {output.sizes[0]} classes")
    # A line per label is the file's whole format.
    return [" ".join(str(label).split()) for label in labels]


def _needs_library(servable: Servable) -> bool:
    return servable.engine is not None and servable.engine.plugins.needs_library


def _plugin(servable: Servable) -> Path | None:
    """The plugin library that the engine was built with, if it is the one that is found here."""
    if servable.engine is None or not _needs_library(servable):
        return None
    library = plugin_library()
    fits = library is not None and file_sha256(library) == servable.engine.plugins.library_sha256
    return library if fits else None


def _command(servable: Servable, name: str) -> str:
    options: list[str] = []
    if _needs_library(servable):
        options.append(f"--backend-config=tensorrt,plugins=/models/{name}/plugins/libvitslim_plugins.so")
    if servable.engine is not None and servable.engine.brings_code:
        # Triton's only switch that lets TensorRT run code out of an engine; it means nothing else there.
        options.append("--backend-config=tensorrt,version-compatible=true")
    variables = "VITSLIM_PLUGIN_REGISTER=1 " if _needs_library(servable) else ""
    return " ".join([f"{variables}tritonserver --model-repository=/models", *options])


def _notes(servable: Servable, name: str, library: Path | None) -> list[str]:
    notes: list[str] = []
    if servable.engine is not None:
        engine = servable.engine
        gpu = f"{engine.gpu} (compute capability {engine.compute_capability})" if engine.gpu else "any GPU"
        same = "or later" if engine.options.get("version_compatible") else "exactly"
        notes.append(f"the engine runs on {gpu} with TensorRT {engine.tensorrt} {same}")
        if engine.plugins.form == "embedded":
            notes.append(f"the engine carries the library of its plugin {', '.join(engine.plugins.used)}")
    if _needs_library(servable) and library is None:
        notes.append(
            "the engine calls a plugin whose library was not found here (vitslim.plugin.plugin_library()) or is not "
            f"the one it was built with; copy libvitslim_plugins.so to {name}/plugins/ before starting the server"
        )
    return notes
