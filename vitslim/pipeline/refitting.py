"""Engines given other weights, without building them again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from vitslim.arguments import checked
from vitslim.opening import ModelLike, open_model
from vitslim.pipeline.exporting import known_of
from vitslim.plugin import plugin_library
from vitslim.runtime import EngineRecord
from vitslim.runtime.engine import read_record
from vitslim.runtime.fit import require_refittable
from vitslim.shapes import AnyPath
from vitslim.targets.tensorrt.refit import options_of, refit_engine
from vitslim.targets.tensorrt.target import write_onnx


@checked
def refit(engine: AnyPath, source: ModelLike, out: AnyPath | None = None) -> EngineRecord:
    """Give an engine other weights without building it again, or a stripped one its weights.

    Args:
        engine: that was built with ``refit=True`` or ``strip_plan=True``, for this machine's GPU.
        source: what has the weights: a folder that vitslim saved, a module, or, for an engine that was built from one,
            an ``.onnx`` file. From a folder or module the ONNX file is written again as for the build, so that nobody
            has to keep it.
        out: the file to write; ``None`` for ``engine`` itself.

    Raises:
        ConfigError: the engine's weights are fixed, or the source is another model.
        VitslimError: see ``vitslim.targets.tensorrt.refit.refit_engine``.
    """
    record = read_record(engine)
    library = plugin_library() if record.plugins.needs_library else None
    if not isinstance(source, nn.Module) and Path(source).suffix == ".onnx":
        return refit_engine(engine, source, out, plugin_library=library)
    # Refused before a model is opened for nothing.
    require_refittable(Path(engine), record)
    with tempfile.TemporaryDirectory(prefix="vitslim-onnx-") as folder:
        file = Path(folder) / f"{Path(engine).stem}.onnx"
        write_onnx(open_model(source), file, options_of(record), known_of(source))
        return refit_engine(engine, file, out, plugin_library=library)
