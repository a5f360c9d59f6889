"""The runtimes that a plan can be made for: whether one is here, and which is the fastest."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.pipeline.devices import device_named
from vitslim.planner import RuntimeConfig
from vitslim.targets import find_backend


def check_runtime(runtime: RuntimeConfig) -> None:
    """Refuse a runtime that cannot be measured on this machine, without loading it.

    Raises:
        ConfigError: no target has this backend, it has no such precision, or it runs on a GPU and the device is none.
        MissingDependencyError: it, or its device, is not installed here.
    """
    target, backend = find_backend(runtime.backend)
    on_gpu = torch.device(runtime.device).type == "cuda"
    if backend.needs_gpu and not on_gpu:
        raise ConfigError(f"target {backend.name} runs on a GPU; plan for it there (--device cuda)")
    if runtime.precision == "int8" and "int8" not in target.precisions:
        raise ConfigError(f"target {backend.name} has no int8; wanted fp32, fp16 or bf16, or another target")
    if missing := _missing(runtime.backend):
        how = f": pip install 'vitslim[{target.extra}]'" if target.extra else ""
        raise MissingDependencyError(f"target {backend.name} is not installed here, it needs {', '.join(missing)}{how}")
    device_named(runtime.device)


def fastest_backend(device: str) -> str:
    """What runs a model fastest of all that is installed: ONNX Runtime on a CPU, compiled torch on a GPU."""
    if torch.device(device).type == "cuda":
        return "compiled"
    return "torch" if _missing("ort") else "ort"


def runs_onnx_files(backend: str) -> bool:
    """Whether it runs an ONNX file, or an engine that is built from one."""
    return "onnx" in find_backend(backend)[0].needs


def _missing(name: str) -> list[str]:
    target, backend = find_backend(name)
    return [module for module in (*target.needs, *backend.needs) if find_spec(module) is None]
