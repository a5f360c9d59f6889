"""FP8 or INT8 for an exported ONNX file, by NVIDIA Model-Optimizer in a Python environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from torch import Tensor

from vitslim.arguments import checked
from vitslim.errors import ConfigError, MissingDependencyError, UnsupportedModelError
from vitslim.files import atomic_path
from vitslim.runtime import Precision
from vitslim.shapes import Result
from vitslim.targets.onnx.graph import choosing_products
from vitslim.targets.onnx.reading import metadata_in, read_header

QuantizedPrecision = Literal["fp8", "int8"]
PRECISIONS: tuple[QuantizedPrecision, ...] = get_args(QuantizedPrecision)

_MODULE = "modelopt.onnx.quantization"
_INSTALL = "python -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]>=0.47'"
_ASK = f"from importlib.metadata import version; import {_MODULE}.quantize; print(version('nvidia-modelopt'))"
_LAST_LINES = 3


class QuantizedOnnx(Result):
    """An ONNX file with Q/DQ nodes.

    Args:
        quantizers: Q nodes in the file.
        kept: names of nodes that were left in high precision because they choose tokens or keys.
    """

    source: str
    precision: QuantizedPrecision
    others: Precision
    modelopt: str
    calibration_images: int
    quantizers: int
    kept: list[str]


@checked
def quantize_onnx(
    source: str | Path,
    path: str | Path,
    calibration: Tensor,
    *,
    precision: QuantizedPrecision = "fp8",
    others: Precision = "fp16",
    python: str | Path | None = None,
    providers: Sequence[str] = ("cpu",),
    calibration_file: str | Path | None = None,
) -> QuantizedOnnx:
    """Quantize an exported float32 ONNX file; its calibration images are ours, the arithmetic is Model-Optimizer's.

    Args:
        source: a float32 ``.onnx`` that vitslim wrote. Local functions in it are inlined, so no plugin is called.
        path: of the new ``.onnx``.
        calibration: images (n, c, h, w), normalised as the model expects; some hundreds of the training set.
        precision: of the matrix products.
        others: of everything else.
        python: the interpreter of the environment that has nvidia-modelopt; ``None`` for this one.
        providers: where the calibration runs, ``cpu``, ``cuda:0`` or ``trt``.
        calibration_file: where the images are left as .npz, for Model-Optimizer by hand; ``None``: nowhere.

    Raises:
        MissingDependencyError: nvidia-modelopt is not in that environment.
        ConfigError: a precision that is not offered, no images, or a file that is not float32.
        UnsupportedModelError: Model-Optimizer could not quantize the file; its last lines are in the message.
        CheckpointError: a file is missing, damaged, or cannot be written.
    """
    source, target = Path(source), Path(path)
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not offered; wanted {' or '.join(PRECISIONS)}")
    if target.suffix != ".onnx":
        raise ConfigError(f"{target}: wanted a path that ends in .onnx")
    if len(calibration) == 0:
        raise ConfigError("calibration needs images; some hundreds of the training set")
    interpreter = str(python or sys.executable)
    version = require_modelopt(interpreter)
    graph = _plain_graph(source)
    kept = choosing_products(graph)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _save_plain(graph, source, work / "plain.onnx")
        data = work / "calibration.npz"
        cast(Any, np.savez)(data, **{graph.graph.input[0].name: calibration.float().cpu().numpy()})
        if calibration_file is not None:
            with atomic_path(calibration_file) as scratch:
                shutil.copyfile(data, scratch)
        command = modelopt_command(
            interpreter, work / "plain.onnx", work / "quantized.onnx", data, precision, others, providers, kept
        )
        _run(command, work / "quantized.onnx")
        quantizers = _finish(work / "quantized.onnx", graph, precision, others)
        with atomic_path(target) as scratch:
            shutil.copyfile(work / "quantized.onnx", scratch)
    return QuantizedOnnx(
        source=source.name,
        precision=precision,
        others=others,
        modelopt=version,
        calibration_images=len(calibration),
        quantizers=quantizers,
        kept=kept,
    )


def modelopt_command(
    interpreter: str,
    source: Path,
    target: Path,
    calibration: Path,
    precision: QuantizedPrecision,
    others: Precision,
    providers: Sequence[str],
    kept: Sequence[str],
) -> list[str]:
    """What is run; the names of the options are those of nvidia-modelopt 0.47."""
    # Node names are regular expressions there; ours hold no special character but the dot.
    exclude = ["--nodes_to_exclude", *(name.replace(".", r"\.") for name in kept)] if kept else []
    return [
        *(interpreter, "-m", _MODULE),
        *("--onnx_path", str(source), "--output_path", str(target)),
        *("--quantize_mode", precision, "--high_precision_dtype", others),
        *("--calibration_data_path", str(calibration), "--calibration_eps", *providers),
        # Not the sums, which INT8 would take by default: a mask of -30000 in a sum leaves nothing of the scores.
        *("--op_types_to_quantize", "Conv", "Gemm", "MatMul"),
        *exclude,
    ]


def require_modelopt(interpreter: str) -> str:
    """The version of nvidia-modelopt in the environment of an interpreter.

    Raises:
        MissingDependencyError: it is not there, or does not load.
    """
    try:
        asked = subprocess.run([interpreter, "-c", _ASK], capture_output=True, text=True, check=False)
    except OSError as error:
        raise MissingDependencyError(f"{interpreter} cannot be started ({error.strerror}); {_advice()}") from None
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or ["no reason given"]
        raise MissingDependencyError(f"nvidia-modelopt does not load in {interpreter} ({lines[-1]}); {_advice()}")
    return asked.stdout.strip().splitlines()[-1]


def _advice() -> str:
    return f"it wants an environment of its own: {_INSTALL}; then --modelopt-python modelopt/bin/python"


def _plain_graph(source: Path) -> Any:
    import onnx
    import onnx.inliner

    read_header(source)
    model = onnx.load(source)
    metadata = metadata_in(model)
    if metadata.get("precision", "fp32") != "fp32":
        raise ConfigError(f"{source.name} is {metadata['precision']}; Model-Optimizer is given the float32 file")
    if not len(model.functions):
        return model
    # A node of ours would send it to TensorRT for calibration; spelled out, every runtime can run the file.
    return _with_initializers(onnx.inliner.inline_local_functions(model))


def _with_initializers(model: Any) -> Any:
    """The model with its constants as initializers: Model-Optimizer changes the type of these, not of constants."""
    import onnx

    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        name = node.attribute[0].name if node.op_type == "Constant" else None
        if name != "value" and name not in types:
            model.graph.node.append(node)
            continue
        value = onnx.helper.get_attribute_value(node.attribute[0])
        array = onnx.numpy_helper.to_array(value) if name == "value" else np.asarray(value, types[name])
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
    # What was noted of types is no longer true once they change.
    del model.graph.value_info[:]
    return model


def _save_plain(graph: Any, source: Path, target: Path) -> None:
    import onnx

    if any(tensor.external_data for tensor in read_header(source).graph.initializer):
        raise ConfigError(f"{source.name} is larger than 2 GB, which Model-Optimizer's command does not take")
    for index, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    onnx.save(graph, target)


def _run(command: list[str], written: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not written.is_file():
        said = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        raise UnsupportedModelError(
            f"Model-Optimizer did not quantize the file (exit code {done.returncode}): "
            f"{' | '.join(said[-_LAST_LINES:]) or 'it said nothing'}"
        )


def _finish(path: Path, source: Any, precision: QuantizedPrecision, others: Precision) -> int:
    """Give the new file the metadata of the old one; count its Q nodes."""
    import onnx

    model = onnx.load(path)
    quantizers = sum(node.op_type in ("QuantizeLinear", "TRT_FP8QuantizeLinear") for node in model.graph.node)
    if quantizers == 0:
        raise UnsupportedModelError("Model-Optimizer quantized nothing in this file")
    metadata = metadata_in(source)
    metadata |= {"precision": others, "quantization": json.dumps({"precision": precision})}
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return quantizers
