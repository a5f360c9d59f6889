"""From an ONNX file to an engine that keeps its guarantees, with the JSON that says so."""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.files import atomic_paths, json_text, write_text
from vitslim.runtime import EngineRecord
from vitslim.runtime.engine import FusedMha, PluginUse, TensorProfile, TensorRecord, file_sha256, record_path
from vitslim.runtime.machine import Machine, this_machine
from vitslim.runtime.tensorrt_api import MODULES, TITLES, require_installed
from vitslim.runtime.versions import library_versions
from vitslim.targets.tensorrt.fingerprint import weights_sha256
from vitslim.targets.tensorrt.guarantees import require_guarantees
from vitslim.targets.tensorrt.layers import (
    EngineLayer,
    count_types,
    fused_attentions,
    layers_from_inspector,
    layers_from_log,
)
from vitslim.targets.tensorrt.options import EngineOptions
from vitslim.targets.tensorrt.plugins import PluginPlan, plan_plugins
from vitslim.targets.tensorrt.process import COMMAND, Built, run_worker
from vitslim.targets.tensorrt.source import Source, input_shapes, read_source, write_source

_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_UNREPORTED = "TensorRT reported nothing of the engine's layers, neither in its log nor through its inspector"


def build_engine(
    onnx_file: str | Path,
    engine: str | Path,
    options: EngineOptions,
    *,
    plugin_library: str | Path | None = None,
    command: Sequence[str] = COMMAND,
    timeout_seconds: float | None = None,
) -> EngineRecord:
    """Build ``onnx_file`` into ``engine``, prove what is guaranteed, write ``engine`` and the JSON beside it.

    The builder runs in a process of its own. Its log, without the verbose lines, is left in ``<engine>.log``, after a
    failure too. Otherwise a failure changes nothing: an earlier engine stays as it was.

    Args:
        onnx_file: in the precision asked for.
        engine: the file to write, ``.engine``.
        options: what to build.
        plugin_library: ``libvitslim_plugins.so``; ``None`` where there is none.
        command: what starts the builder; for tests.
        timeout_seconds: after which the builder is given up.

    Raises:
        ConfigError: the file and the options do not go together.
        MissingDependencyError: TensorRT, a GPU or the plugin that was asked for is not here.
        UnsupportedModelError: TensorRT's parser does not take the file.
        CheckpointError: the ONNX file is missing or damaged, or the engine cannot be written.
        CheckFailedError: the builder failed or died, or the engine is not what was asked for.
    """
    engine = Path(engine)
    version = require_installed(options.flavor)
    _check_gpu(options)
    plugins = plan_plugins(options, plugin_library)
    source = read_source(onnx_file, options, version, with_plugins=plugins is not None)
    if not source.plugin_nodes:
        plugins = None
    if options.plugins in ("on", "external") and plugins is None:
        raise ConfigError(f"{Path(onnx_file).name} calls none of vitslim's operators; build with --plugins off")
    started = time.perf_counter()
    files = atomic_paths(engine, record_path(engine))
    with files as (scratch, note), tempfile.TemporaryDirectory(prefix="vitslim-engine-") as folder:
        request = _request(source, options, Path(folder), scratch, plugins)
        try:
            built = run_worker(
                request,
                Path(folder),
                name_module=source.module_of,
                command=command,
                timeout_seconds=timeout_seconds,
            )
        finally:
            log_sha256 = keep_log(Path(folder), engine)
        record = _record(source, options, built, scratch, plugins, log_sha256, time.perf_counter() - started)
        require_guarantees(record, known_layers(built)[0], options)
        note.write_text(json_text(record.model_dump(mode="json"), note), "utf-8")
    return record


def _check_gpu(options: EngineOptions) -> None:
    if torch.cuda.is_available():
        return
    if options.flavor == "tensorrt":
        raise MissingDependencyError(
            "TensorRT builds on the GPU that the engine should run on, none is usable here; "
            "build there, or with --to rtx, which needs no GPU"
        )
    if options.refit or options.strip_plan:
        raise MissingDependencyError(
            "TensorRT-RTX compiles engines whose weights can be exchanged (--refit, --strip-plan) on a GPU, none is "
            "usable here; leave these out, or build where there is one"
        )


def _request(
    source: Source, options: EngineOptions, folder: Path, engine: Path, plugins: PluginPlan | None
) -> dict[str, Any]:
    return {
        "task": "build",
        "module": MODULES[options.flavor],
        "onnx": str(write_source(source, folder)),
        "engine": str(engine),
        "plugins": plugins and plugins.request(),
        "flags": options.builder_flags(),
        "tf32": options.precision != "fp32",
        "workspace_mib": options.workspace_mib,
        "shapes": input_shapes(source, options),
        "timing_cache": None if options.timing_cache is None else str(options.timing_cache),
        "has_gpu": torch.cuda.is_available(),
    }


def keep_log(folder: Path, engine: Path) -> str:
    """Leave the log beside the engine and give its digest."""
    log = folder / "build.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    text = "".join(f"{line}\n" for line in lines if not line.startswith("[VERBOSE]"))
    write_text(engine.with_name(engine.name + ".log"), text)
    return hashlib.sha256(text.encode()).hexdigest()


def _record(
    source: Source,
    options: EngineOptions,
    built: Built,
    engine: Path,
    plugins: PluginPlan | None,
    log_sha256: str,
    seconds: float,
) -> EngineRecord:
    layers, known_from = known_layers(built)
    # An engine of TensorRT-RTX is compiled to the end on the machine that runs it, and bound to none before.
    machine = this_machine() if options.flavor == "tensorrt" else Machine()
    # What the plugin computes is no fused attention of TensorRT's, and none is missing.
    expected = source.attentions - (source.plugin_attentions if built.answer["plugin_layers"] else 0)
    fused = FusedMha(found=fused_attentions(layers), expected=expected) if layers else None
    asked = options.model_dump(mode="json", exclude={"flavor", "precision"})
    if options.timing_cache is not None:
        asked["timing_cache"] = options.timing_cache.name
    return EngineRecord(
        flavor=options.flavor,
        tensorrt=built.answer["tensorrt"],
        **machine.model_dump(),
        onnx_sha256=file_sha256(source.path),
        graph_sha256=source.graph_sha256,
        weights_sha256=weights_sha256(source.model, source.path.parent),
        engine_sha256=file_sha256(engine),
        precision=options.precision,
        profiles=[TensorProfile(**profile) for profile in built.answer["profiles"]],
        inputs=[_tensor(tensor) for tensor in built.answer["inputs"]],
        outputs=[_tensor(tensor) for tensor in built.answer["outputs"]],
        plugins=_plugin_use(source, plugins) if built.answer["plugin_layers"] else PluginUse(),
        layers=count_types(layers) if layers else None,
        layers_source=known_from,
        matrix_types=built.answer["matrix_types"],
        fused_mha=fused,
        unknown={} if layers else {"layers": _UNREPORTED, "fused_mha": _UNREPORTED},
        options=asked,
        is_refittable=options.refit or options.strip_plan,
        has_weights=not options.strip_plan,
        changes=source.changes,
        metadata=source.metadata,
        build_log_sha256=log_sha256,
        seconds=round(seconds, 2),
        versions={**library_versions(), MODULES[options.flavor]: built.answer["tensorrt"]},
    )


def known_layers(built: Built) -> tuple[list[EngineLayer], str | None]:
    """What is known of the engine's layers, and from where: the engine itself comes before the builder's list."""
    if built.answer["layers"]:
        return layers_from_inspector(built.answer["layers"]), "inspector"
    listed = layers_from_log(built.log)
    return listed, "build log" if listed else None


def _tensor(given: dict[str, Any]) -> TensorRecord:
    dtype = str(given["dtype"])
    return TensorRecord(name=given["name"], dtype=_TYPES.get(dtype, dtype.lower()), shape=given["shape"])


def _plugin_use(source: Source, plugins: PluginPlan | None) -> PluginUse:
    if plugins is None:
        return PluginUse()
    digest = None if plugins.library is None else file_sha256(plugins.library)
    return PluginUse(used=sorted(source.plugin_nodes), form=plugins.form, library_sha256=digest)


def describe(record: EngineRecord) -> str:
    """One line for a person: precision, fused attention, plugins, what it is bound to."""
    fused = "unknown" if record.fused_mha is None else str(record.fused_mha)
    where = record.gpu or "any GPU of its flavor"
    plugins = f"plugin {', '.join(record.plugins.used)} ({record.plugins.form}), " if record.plugins.used else ""
    return f"{record.precision}, fused attention {fused}, {plugins}{TITLES[record.flavor]} {record.tensorrt}, {where}"
