"""Giving an engine other weights, or a stripped engine its weights, without building it again."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitslim.errors import ConfigError
from vitslim.files import atomic_paths, json_text
from vitslim.runtime import EngineRecord
from vitslim.runtime.engine import file_sha256, read_record, record_path
from vitslim.runtime.fit import require_machine, require_plugins, require_refittable, require_whole
from vitslim.runtime.machine import this_machine
from vitslim.runtime.tensorrt_api import MODULES, installed_version, require_installed
from vitslim.targets.tensorrt.fingerprint import weights_sha256
from vitslim.targets.tensorrt.options import EngineOptions
from vitslim.targets.tensorrt.process import COMMAND, run_worker
from vitslim.targets.tensorrt.source import Source, read_source, write_source


def refit_engine(
    engine: str | Path,
    onnx_file: str | Path,
    out: str | Path | None = None,
    *,
    plugin_library: str | Path | None = None,
    command: Sequence[str] = COMMAND,
    timeout_seconds: float | None = None,
) -> EngineRecord:
    """Write ``engine`` with the weights of ``onnx_file``, and the JSON beside it; a failure changes nothing.

    Args:
        engine: built with ``--refit`` or ``--strip-plan``, on this machine's GPU.
        onnx_file: with the graph that the engine was built from. For an engine that was stripped without ``--refit``
            with the same weights, too: TensorRT has tuned it for them.
        out: the file to write; ``None`` for ``engine`` itself.
        plugin_library: of an engine whose plugins lie outside it.
        command: what starts TensorRT's process; for tests.
        timeout_seconds: after which it is given up.

    Raises:
        ConfigError: the engine's weights are fixed, or the file does not go with it.
        CheckpointError: a file is missing or damaged, the engine was built for another machine, or cannot be written.
        MissingDependencyError: TensorRT, a GPU or the plugin library is not here.
        CheckFailedError: TensorRT failed or died.
    """
    engine = Path(engine)
    target = engine if out is None else Path(out)
    if target.suffix != ".engine":
        raise ConfigError(f"{target}: an engine's file ends in .engine")
    record = read_record(engine)
    require_whole(engine, record)
    require_refittable(engine, record)
    require_machine(engine, record, this_machine(), installed_version(record.flavor))
    require_plugins(engine, record, plugin_library)
    version = require_installed(record.flavor)
    source = read_source(onnx_file, options_of(record), version, with_plugins=bool(record.plugins.used))
    weights = weights_sha256(source.model, source.path.parent)
    _require_same_model(engine, record, source, weights)
    files = atomic_paths(target, record_path(target))
    with files as (scratch, note), tempfile.TemporaryDirectory(prefix="vitslim-refit-") as folder:
        request: dict[str, Any] = {
            "task": "refit",
            "module": MODULES[record.flavor],
            "onnx": str(write_source(source, Path(folder))),
            "given": str(engine),
            "engine": str(scratch),
            "brings_code": record.brings_code,
            "plugins": {"form": "external", "library": str(plugin_library)} if record.plugins.needs_library else None,
        }
        answer = run_worker(
            request, Path(folder), name_module=source.module_of, command=command, timeout_seconds=timeout_seconds
        ).answer
        changed = {
            "onnx_sha256": file_sha256(source.path),
            "weights_sha256": weights,
            "engine_sha256": file_sha256(scratch),
            "metadata": source.metadata,
            "has_weights": True,
            "is_refittable": answer["refittable"],
        }
        refitted = record.model_copy(update=changed)
        note.write_text(json_text(refitted.model_dump(mode="json"), note), "utf-8")
    return refitted


def options_of(record: EngineRecord) -> EngineOptions:
    """The options that an engine was built with."""
    return EngineOptions.model_validate({**record.options, "flavor": record.flavor, "precision": record.precision})


def _require_same_model(engine: Path, record: EngineRecord, source: Source, weights: str) -> None:
    if source.graph_sha256 != record.graph_sha256:
        raise ConfigError(
            f"{source.path.name} computes something else than the file {engine.name} was built from (other layers, "
            "sizes, operators or method), and a refit changes weights only. An engine that was built from an ONNX file "
            f"wants such a file: --from FILE.onnx. Or build it again: {record.rebuild_command()}"
        )
    if weights != record.weights_sha256 and not record.options.get("refit"):
        raise ConfigError(
            f"{engine.name} was built with --strip-plan alone and takes back the very weights it was built from; "
            f"{source.path.name} has others. Build it with --refit as well: {record.rebuild_command()} --refit"
        )
