"""Running OpenVINO's intermediate representation on a CPU."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError
from vitslim.files import cache_root
from vitslim.runtime.engine import file_sha256
from vitslim.runtime.runner import Images, Precision, Runner, TensorSpec, check_images

METADATA = ["vitslim", "metadata"]
"""Where our metadata lie among the model's run-time information, as JSON."""
WEIGHTS_DIGEST = "weights_sha256"

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
_SETTINGS = ("PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS")
_TYPES = {"f32": torch.float32, "f16": torch.float16, "u8": torch.uint8}
_OUTPUTS = {**_TYPES, "i32": torch.int32, "i64": torch.int64, "boolean": torch.bool}


class OpenVinoRunner(Runner):
    """A ``.xml`` file, with its weights in ``.bin`` beside it, compiled for the CPU.

    The precision of the arithmetic is always said to OpenVINO, which would choose bfloat16 by itself where the
    processor has it; beside the products of an INT8 file that is what is chosen. A float16 file is computed in float32
    where the processor has no float16: OpenVINO would take the coarser bfloat16 for it.

    Args:
        path: of the ``.xml`` file.
        threads: of all inferences that run at once; ``None`` for OpenVINO's choice.
        splits: OpenVINO's throughput mode: the images of a call are dealt out to as many inferences as run best side by
            side. Else its latency mode, where all threads work on one.
        keeps_compiled: what was compiled is kept in vitslim's cache, for the next start.
        name: how reports call it; the file's stem by default.
        change: done to OpenVINO's model before it is compiled.

    Attributes:
        settings: what OpenVINO says that it runs with: mode, precision, threads, streams.

    Raises:
        MissingDependencyError: openvino is not installed.
        CheckpointError: the file is missing, OpenVINO does not read it, or its weights are those of another file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        splits: bool = False,
        keeps_compiled: bool = False,
        name: str | None = None,
        change: Callable[[Any], None] | None = None,
    ) -> None:
        path = Path(path)
        core, model = read_ir(path)
        if change is not None:
            change(model)
        self.metadata = metadata_of(model)
        _require_own_weights(path, self.metadata)
        self.precision, self._splits = precision_of(self.metadata), splits
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT" if splits else "LATENCY",
            "INFERENCE_PRECISION_HINT": precision_hint(core, self.precision),
        }
        if not splits:
            properties["NUM_STREAMS"] = "1"
        if threads is not None:
            # Threads that are pinned to the first cores meet there, where several programs run.
            properties |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        if keeps_compiled:
            properties["CACHE_DIR"] = str(cache_root() / "openvino")
        try:
            self._compiled: Any = core.compile_model(model, "CPU", properties)
            self.inputs = tuple(_spec(port) for port in self._compiled.inputs)
            self.outputs = tuple(_spec(port, _OUTPUTS) for port in self._compiled.outputs)
            self._requests = self._new_requests()
            self.settings = {one: _in_words(self._compiled.get_property(one)) for one in _SETTINGS}
        except RuntimeError as error:  # openvino's only class
            raise CheckpointError(f"OpenVINO cannot compile {path.name}: {error}") from error
        self.name, self.backend, self.device = name or path.stem, "openvino", torch.device("cpu")

    def run(self, images: Images) -> Float[Tensor, "b ..."]:
        """The file's first output for ``images``, float32.

        Raises:
            ConfigError: the images are not what the file takes, see ``check_images``.
        """
        return self.run_all(images)[0].float()

    def run_all(self, images: Images) -> list[Tensor]:
        """All outputs of the file for ``images``, as they are.

        Raises:
            ConfigError: the images are not what the file takes, see ``check_images``.
        """
        self.require_open()
        check_images(images, self.inputs[0])
        given = images.detach().to(device="cpu", dtype=self.inputs[0].dtype).contiguous()
        parts = [part.numpy() for part in given.tensor_split(min(len(given), len(self._requests)))]
        working = self._requests[: len(parts)]
        try:
            for request, part in zip(working, parts, strict=True):
                request.start_async([part], share_inputs=True)
            for request in working:
                request.wait()
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run {self.name}: {error}") from error
        return [
            torch.cat([torch.from_numpy(request.get_output_tensor(index).data) for request in working])
            for index in range(len(self.outputs))
        ]

    def share(self) -> OpenVinoRunner:
        self.require_open()
        other = copy.copy(self)
        other._requests = self._new_requests()
        return other

    def close(self) -> None:
        super().close()
        self._requests, self._compiled = [], None

    def _new_requests(self) -> list[Any]:
        count = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if self._splits else 1
        return [self._compiled.create_infer_request() for _ in range(count)]


def read_ir(path: Path) -> tuple[Any, Any]:
    """OpenVINO's core, and the model in a file.

    Raises:
        MissingDependencyError: openvino is not installed.
        CheckpointError: there is no such file, or OpenVINO does not read it.
    """
    try:
        import openvino
    except ImportError:
        raise MissingDependencyError("OpenVINO files need openvino: pip install 'vitslim[openvino]'") from None
    for file in (path, path.with_suffix(".bin")):
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist; a model is {path.name} and {path.stem}.bin together")
    core = openvino.Core()
    try:
        return core, core.read_model(path)
    except RuntimeError as error:
        raise CheckpointError(f"OpenVINO {openvino.__version__} cannot read {path}: {error}") from error


def metadata_of(model: Any) -> dict[str, str]:
    """What vitslim wrote into a model; nothing for models of others."""
    if not model.has_rt_info(METADATA):
        return {}
    try:
        found = json.loads(model.get_rt_info(METADATA).astype(str))
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the model's metadata are damaged ({error}); export it again") from None


def precision_of(metadata: dict[str, str]) -> Precision:
    """The precision that a file is to be computed in; float32 for files that say nothing."""
    declared = metadata.get("precision", "fp32")
    known: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
    for precision in known:
        if declared == precision:
            return precision
    raise ConfigError(f"the file is to be computed in {declared!r}; this vitslim knows {', '.join(known)}")


def precision_hint(core: Any, precision: Precision) -> str:
    """What a file of ``precision`` is computed in on this processor, in OpenVINO's words: f32, f16 or bf16."""
    there = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "fp16":
        return "f16" if "FP16" in there else "f32"
    if precision == "int8":
        return "bf16" if "BF16" in there else "f32"
    return _HINTS[precision]


def _require_own_weights(path: Path, metadata: dict[str, str]) -> None:
    weights = path.with_suffix(".bin")
    if metadata.get(WEIGHTS_DIGEST, "") not in ("", file_sha256(weights)):
        raise CheckpointError(f"{weights.name} holds other weights than {path.name} was written with; export it again")


def _in_words(value: Any) -> str:
    return value.get_type_name() if hasattr(value, "get_type_name") else str(value)


def _spec(port: Any, types: Mapping[str, torch.dtype] = _TYPES) -> TensorSpec:
    element = port.get_element_type().get_type_name()
    if element not in types:
        raise ConfigError(f"'{port.get_any_name()}' is {element}; runners take float32, float16 and uint8")
    shape = tuple(one.get_length() if one.is_static else None for one in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), shape, types[element])
