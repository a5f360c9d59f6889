"""Opening ONNX Runtime sessions: its options, its providers, its known bugs, in one place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vitslim.errors import CheckpointError, MissingDependencyError

Provider = Literal["cpu", "cuda", "tensorrt"]

_PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# What a provider does not take goes to the next one, and in the end to the CPU.
_FALLBACKS: dict[Provider, tuple[Provider, ...]] = {"cpu": (), "cuda": (), "tensorrt": ("cuda",)}
_ERRORS_ONLY = 3  # ONNX Runtime's severity scale: 0 verbose, 1 info, 2 warning, 3 error
_FLOAT16, _BFLOAT16 = 10, 16  # of onnx.TensorProto

_FAULTY_IN_HALF = ("MatmulTransposeFusion",)
"""Optimisations left out for float16 on the CPU.

Where a transposed operand of three axes meets a MatMul, which the CPU computes in float32, this one leaves a node
without a schema behind, and the change to blocked convolutions reads it through a null pointer: the process is gone
(seen with 1.31.1; microsoft/onnxruntime issue 28392, from 1.24 on, x86). Files that vitslim writes avoid the pattern;
others may hold it.
"""


def open_session(
    model: Path | bytes, *, provider: Provider = "cpu", threads: int | None = None, optimized: bool = True
) -> Any:
    """An ``onnxruntime.InferenceSession``.

    Args:
        model: a file, or a serialized ``onnx.ModelProto``.
        provider: what computes; it has to start, parts of the graph that it does not take fall back.
        threads: for the operators of one inference; ``None`` for ONNX Runtime's choice, one per core.
        optimized: ``False`` runs the graph as it stands.

    Raises:
        MissingDependencyError: onnxruntime, or the asked-for provider, is not there; or the graph is in bfloat16, and
            the provider is the CPU.
        CheckpointError: the file is missing, or is not an ONNX file that this onnxruntime reads.
    """
    try:
        import onnxruntime as ort  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise MissingDependencyError("running an ONNX file needs onnxruntime: pip install 'vitslim[onnx]'") from None
    if _PROVIDERS[provider] not in ort.get_available_providers():
        raise MissingDependencyError(f"this onnxruntime has no {_PROVIDERS[provider]}: pip install onnxruntime-gpu")
    if isinstance(model, Path) and not model.is_file():
        raise CheckpointError(f"{model} does not exist; export the model first")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    header = _header(model) if isinstance(model, Path) else None
    name = model.name if isinstance(model, Path) else "the graph"
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=[(_PROVIDERS[one], _options(one, header)) for one in (provider, *_FALLBACKS[provider])],
            disabled_optimizers=list(_left_out(header)) if optimized and provider == "cpu" else [],
        )
    except Exception as error:  # onnxruntime raises a dozen unrelated classes here
        if provider == "cpu" and header is not None and _has_weights_of(_BFLOAT16, header.graph):
            raise MissingDependencyError(
                f"{name} is in bfloat16, which ONNX Runtime does not compute on a CPU; run it on a GPU, "
                "or export fp32 or fp16 (`vitslim verify` compares such a file in float32, rounded)"
            ) from error
        raise CheckpointError(f"onnxruntime {ort.__version__} cannot load {name}: {error}") from error
    if session.get_providers()[0] != _PROVIDERS[provider]:
        raise MissingDependencyError(f"onnxruntime could not start {_PROVIDERS[provider]}; is a GPU driver there?")
    return session


def _header(path: Path) -> Any:
    """The file without weights that lie beside it; ``None`` where it cannot be read, which the session reports."""
    try:
        import onnx

        return onnx.load(str(path), load_external_data=False)
    except Exception:  # onnx is not installed, or protobuf's own class, which moves between versions
        return None


def _left_out(header: Any) -> Sequence[str]:
    # A file that cannot be looked into might be float16.
    return _FAULTY_IN_HALF if header is None or _computes_in_half(header.graph) else ()


def _computes_in_half(graph: Any) -> bool:
    takes_half = any(value.type.tensor_type.elem_type == _FLOAT16 for value in graph.input)
    return takes_half or _has_weights_of(_FLOAT16, graph)


def _has_weights_of(kind: int, graph: Any) -> bool:
    return any(tensor.data_type == kind for tensor in graph.initializer)


def _options(provider: Provider, header: Any) -> dict[str, Any]:
    if provider != "tensorrt" or header is None:
        return {}
    # This provider's TensorRT is weakly typed: without the option it computes a half-precision file in float32.
    declared = {entry.key: entry.value for entry in header.metadata_props}.get("precision")
    return {"trt_fp16_enable": True} if declared == "fp16" else {}
