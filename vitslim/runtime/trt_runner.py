"""Running an engine in TensorRT or TensorRT-RTX."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, MissingDependencyError
from vitslim.runtime.cuda_graph import CapturedRun, capture
from vitslim.runtime.engine import read_record
from vitslim.runtime.fit import check_profile, driver_difference, require_fit, require_plugins
from vitslim.runtime.machine import this_machine
from vitslim.runtime.runner import Images, Runner, TensorSpec, check_images
from vitslim.runtime.tensorrt_api import TITLES, api_logger, installed_version, open_api


class TrtRunner(Runner):
    """An engine with an execution context of its own, on one GPU.

    The engine's JSON decides which flavor of TensorRT opens it, and whether it fits this machine at all. An engine that
    carries its plugin or a lean runtime brings code, which then runs: open only engines whose origin you trust.

    Args:
        path: a ``.engine`` file with its ``.engine.json`` beside it.
        device: a CUDA device; ``None`` for torch's current one.
        plugin_library: has the plugins that the engine calls; ``None`` where it calls none, or carries them.
        name: how reports call it; the file's stem by default.

    Raises:
        CheckpointError: the engine or its JSON is missing, damaged, or was built for another GPU or version.
        MissingDependencyError: TensorRT, a GPU or a plugin is not here.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        plugin_library: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        path = Path(path)
        self.record = read_record(path)
        flavor = self.record.flavor
        gpu = _gpu(device)
        require_fit(path, self.record, this_machine(gpu), installed_version(flavor))
        self.device = cast(torch.device, gpu)
        require_plugins(path, self.record, plugin_library)
        self.name = name or path.stem
        self._api = open_api(flavor)
        self._log: list[str] = []
        with torch.cuda.device(self.device):
            self._runtime: Any = self._api.Runtime(api_logger(self._api, self._log))
            # Only where code was put into it; of an engine from elsewhere TensorRT may run none.
            self._runtime.engine_host_code_allowed = self.record.brings_code
            self._engine: Any = self._open(path, plugin_library)
            self._context: Any = self._new_context()
        self.inputs, self.outputs = self._specs()
        self.backend, self.precision, self.metadata = flavor, self.record.precision, self.record.metadata

    def run(self, images: Images) -> Float[Tensor, "b ..."]:
        """The engine's first output for ``images``, float32, on the runner's device.

        The work is put on torch's current stream; the call returns before it is done.

        Raises:
            ConfigError: the images' shape lies outside the engine's profile.
            CheckFailedError: TensorRT refused or failed the run.
        """
        self._check(tuple(images.shape))
        check_images(images, self.inputs[0])
        images = images.detach().to(self.device, self.inputs[0].dtype, non_blocking=True).contiguous()
        return self._enqueue(images).float()

    def capture(self, shape: tuple[int, ...]) -> CapturedRun:
        self._check(tuple(shape))
        return capture(self._enqueue, torch.zeros(shape, dtype=self.inputs[0].dtype, device=self.device))

    def share(self) -> "TrtRunner":
        """A second execution context on the same engine, for another thread or stream."""
        other = super().share()
        with torch.cuda.device(self.device):
            other._context = other._new_context()
        return other

    def close(self) -> None:
        super().close()
        # What the GPU still works at reads the engine's memory.
        torch.cuda.synchronize(self.device)
        # In this order: each was made by the next.
        self._context = None
        self._engine = None
        self._runtime = None

    def _check(self, shape: tuple[int, ...]) -> None:
        self.require_open()
        check_profile(shape, self.record.profiles[0])

    def _open(self, path: Path, plugin_library: str | Path | None) -> Any:
        if plugin_library is not None and self.record.plugins.needs_library:
            load_plugins(self._api, plugin_library)
        content = path.read_bytes()
        if self.record.flavor == "rtx":
            self._check_validity(path, content)
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise CheckpointError(
                f"{TITLES[self.record.flavor]} cannot load {path.name}: {last_error(self._log)}"
                f"{driver_difference(self.record, this_machine(self.device))}; "
                f"build it again: {self.record.rebuild_command()}"
            )
        if self.record.options.get("weight_streaming"):
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        return engine

    def _check_validity(self, path: Path, content: bytes) -> None:
        validity, diagnostics = self._runtime.get_engine_validity(content)
        if validity.name == "INVALID":
            kinds = self._api.EngineInvalidityDiagnostics.__members__
            found = [name for name, bit in kinds.items() if int(diagnostics) & int(bit)]
            raise CheckpointError(
                f"{path.name} cannot run here, says TensorRT-RTX: {', '.join(found) or last_error(self._log)}; "
                f"build it again: {self.record.rebuild_command()}"
            )

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise CheckFailedError(
                f"{self.name}: no execution context could be made ({last_error(self._log)}); "
                "the GPU may lack memory: build with a smaller --batch maximum"
            )
        return context

    def _enqueue(self, images: Tensor) -> Tensor:
        context = self._context
        if not context.set_input_shape(self.inputs[0].name, tuple(images.shape)):
            raise CheckFailedError(f"{self.name} refused {tuple(images.shape)}: {last_error(self._log)}")
        results = [
            torch.empty(tuple(context.get_tensor_shape(spec.name)), dtype=spec.dtype, device=self.device)
            for spec in self.outputs
        ]
        for spec, tensor in zip((*self.inputs, *self.outputs), (images, *results), strict=True):
            context.set_tensor_address(spec.name, tensor.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise CheckFailedError(f"{self.name} failed to run: {last_error(self._log)}")
        return results[0]

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        specs = [(self._engine.get_tensor_mode(name).name, self._spec(name)) for name in names]
        return (
            tuple(spec for mode, spec in specs if mode == "INPUT"),
            tuple(spec for mode, spec in specs if mode == "OUTPUT"),
        )

    def _spec(self, name: str) -> TensorSpec:
        shape: Sequence[int] = tuple(self._engine.get_tensor_shape(name))
        return TensorSpec(
            name,
            tuple(None if size < 0 else int(size) for size in shape),
            _torch_dtype(name, self._engine.get_tensor_dtype(name).name),
        )


def load_plugins(api: Any, library: str | Path) -> None:
    """Add the plugins of a shared library to TensorRT's registry; a library that is there already is left alone.

    Raises:
        MissingDependencyError: the file is missing, or is no plugin library for this TensorRT.
    """
    library = Path(library)
    if not library.is_file():
        raise MissingDependencyError(f"plugin library {library} does not exist; make it with `vitslim plugin build`")
    if str(library.resolve()) in _LOADED:
        return
    # ``load_library`` gives None for a library that it cannot use, and says nothing.
    if api.get_plugin_registry().load_library(os.fspath(library)) is None:
        raise MissingDependencyError(
            f"TensorRT {api.__version__} takes no plugins from {library.name}; build it for this version with "
            "`vitslim plugin build --tensorrt-include DIR`"
        )
    _LOADED.add(str(library.resolve()))


_LOADED: set[str] = set()


def last_error(log: list[str]) -> str:
    """The last error that TensorRT logged, without its severity."""
    errors = [line.partition(": ")[2] for line in log if "ERROR" in line.partition(": ")[0]]
    return errors[-1] if errors else "it gave no reason"


def _gpu(device: str | torch.device | None) -> torch.device | None:
    if not torch.cuda.is_available():
        return None  # ``require_fit`` says what that means for the engine at hand
    wanted = torch.device("cuda" if device is None else device)
    if wanted.type != "cuda":
        raise ConfigError(f"an engine runs on a GPU; device '{wanted}' was asked for, wanted cuda or cuda:N")
    return torch.device("cuda", torch.cuda.current_device()) if str(wanted) == "cuda" else wanted


_TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


def _torch_dtype(name: str, dtype: str) -> torch.dtype:
    if dtype not in _TYPES:
        raise ConfigError(f"'{name}' is {dtype}, which no tensor of torch holds; runners take {', '.join(_TYPES)}")
    return _TYPES[dtype]
