"""Opening what was exported with the best backend that is here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from vitslim.arguments import checked
from vitslim.errors import CheckpointError, ConfigError, VitslimError
from vitslim.openers import ModelOpener, model_opener
from vitslim.runtime.engine import read_record
from vitslim.runtime.onnx_runner import OrtRunner
from vitslim.runtime.ort_session import Provider
from vitslim.runtime.runner import Precision, Runner
from vitslim.runtime.torch_runner import TorchRunner
from vitslim.runtime.trt_runner import TrtRunner
from vitslim.shapes import AnyPath

ArtifactBackend = Literal["tensorrt", "rtx", "ort", "ort-cuda", "ort-tensorrt", "torch"]
BACKENDS: tuple[ArtifactBackend, ...] = get_args(ArtifactBackend)

_PROVIDERS: dict[str, Provider] = {"ort": "cpu", "ort-cuda": "cuda", "ort-tensorrt": "tensorrt"}


def open_artifact(path: str | Path, *, threads: int | None = None, backend: str | None = None) -> Runner:
    """Load an exported file: ``.onnx`` in ONNX Runtime, ``.engine`` in the TensorRT that its JSON names.

    Args:
        path: of the file.
        threads: of ONNX Runtime on the CPU.
        backend: one of ``BACKENDS`` that reads such a file; ``None`` for ONNX Runtime on the CPU, or the engine's own.

    Raises:
        ConfigError: no backend, or not this one, reads files of this suffix.
        CheckpointError: the file is missing or damaged, or the engine does not fit this machine.
        MissingDependencyError: what the backend needs is not here.
    """
    path = Path(path)
    if path.suffix == ".onnx" and backend in (None, *_PROVIDERS):
        return OrtRunner(path, threads=threads, provider=_PROVIDERS[backend or "ort"])
    if path.suffix == ".engine" and backend in (None, "tensorrt", "rtx"):
        record = read_record(path)
        if backend not in (None, record.flavor):
            raise ConfigError(f"{path.name} was built for {record.flavor}, backend {backend} was asked for")
        return TrtRunner(path, plugin_library=_plugin_library() if record.plugins.needs_library else None)
    if path.suffix not in (".onnx", ".engine"):
        raise ConfigError(f"{path.name}: no backend for this suffix; give a .onnx or .engine file")
    readers = ", ".join(_PROVIDERS) if path.suffix == ".onnx" else "tensorrt, rtx"
    raise ConfigError(f"backend {backend!r} does not read {path.name}; wanted one of {readers}")


@checked
def load(
    path: AnyPath,
    *,
    backend: str | None = None,
    precision: Precision | None = None,
    device: str | None = None,
    on_skip: Callable[[str], object] | None = None,
) -> Runner:
    """Open a saved folder, or one file, with the best backend that is here; ``.backend`` of the runner says which.

    The order is: a TensorRT engine that fits the machine, ONNX Runtime on the GPU, ONNX Runtime on the CPU, torch.
    Where a folder holds files of several precisions the lowest comes first on a GPU, float32 on the CPU. What opens
    from a folder takes normalised images; a file for bytes is opened by its own path.

    Args:
        path: a folder that ``vitslim.save`` wrote, with its exports in ``export/``; or a ``.onnx`` or ``.engine`` file.
        backend: one of ``BACKENDS``, which is then used or refused; ``None`` for the best.
        precision: only this one.
        device: of the torch backend; ``None`` for a GPU where there is one.
        on_skip: called with a sentence for every better backend that could not be used.

    Raises:
        ConfigError: an unknown backend, or nothing there that it reads.
        CheckpointError: nothing there can be opened.
        MissingDependencyError: what the given backend needs is not here.
    """
    path = Path(path)
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is not known; wanted one of {', '.join(BACKENDS)}")
    if path.suffix in (".onnx", ".engine"):
        return _first(_for_file(path, backend), path, backend, on_skip)
    return _first(_for_folder(path, backend, precision, device), path, backend, on_skip)


_Opening = tuple[str, Callable[[], Runner]]


def _first(
    openings: list[_Opening], path: Path, backend: str | None, on_skip: Callable[[str], object] | None
) -> Runner:
    reasons: list[str] = []
    for title, opening in openings:
        try:
            return opening()
        except VitslimError as error:
            if len(openings) == 1:
                raise
            reasons.append(f"{title}: {error}")
            if on_skip is not None:
                on_skip(reasons[-1])
    if not reasons:
        raw = ", ".join(sorted(file.name for file in (path / "export").glob("*.onnx") if _takes_bytes(file)))
        passed_over = f" for normalised images ({raw} takes bytes; open it by its own path)" if raw else ""
        raise ConfigError(
            f"{path} holds nothing that {'any backend' if backend is None else f'backend {backend!r}'} reads"
            f"{passed_over}; make it with "
            f"`vitslim export {path} --to {'tensorrt' if backend in ('tensorrt', 'rtx') else 'onnx'}`"
        )
    raise CheckpointError(f"nothing of {path} could be opened: {'; '.join(reasons)}")


def _for_file(path: Path, backend: str | None) -> list[_Opening]:
    if path.suffix == ".onnx" and backend is None and torch.cuda.is_available():
        return [(one, lambda one=one: open_artifact(path, backend=one)) for one in ("ort-cuda", "ort")]
    return [(backend or path.name, lambda: open_artifact(path, backend=backend))]


def _for_folder(path: Path, backend: str | None, precision: Precision | None, device: str | None) -> list[_Opening]:
    exports = path / "export"
    found: list[_Opening] = []
    for engine in _by_precision(exports.glob("*.engine"), precision, on_gpu=True):
        if backend in (None, "tensorrt", "rtx") and backend in (None, _flavor(engine)):
            found.append((engine.name, lambda engine=engine: open_artifact(engine)))
    for provider in ("ort-tensorrt", "ort-cuda", "ort"):
        # Engines that ONNX Runtime builds at the first images are worth their minutes only to who asks for them.
        if backend == provider or (backend is None and (provider == "ort" or _gpu_for(provider))):
            for file in _by_precision(exports.glob("*.onnx"), precision, on_gpu=provider != "ort"):
                found.append(
                    (f"{file.name} in {provider}", lambda file=file, p=provider: open_artifact(file, backend=p))
                )
    opener = model_opener()
    if opener is not None and backend in (None, "torch") and (path / "config.json").is_file():
        found.append(("torch", lambda: _torch_runner(opener, path, precision, device)))
    return found


def _gpu_for(provider: str) -> bool:
    return provider == "ort-cuda" and torch.cuda.is_available()


def _by_precision(files: Any, precision: Precision | None, *, on_gpu: bool) -> list[Path]:
    ranks = {"fp16": 0, "bf16": 1, "fp32": 2} if on_gpu else {"fp32": 0, "fp16": 1, "bf16": 2}
    named = [(_precision_in_name(file), file) for file in sorted(files)]
    # Of files that compute the same, the one with the plainest name.
    wanted = [(ranks[kind], len(file.name), file) for kind, file in named if precision in (None, kind)]
    return [file for _, _, file in sorted(wanted) if not _takes_bytes(file)]


def _takes_bytes(file: Path) -> bool:
    return "-uint8-" in file.name


def _precision_in_name(file: Path) -> Precision:
    last = file.stem.rpartition("-")[2]
    return last if last in ("fp16", "bf16") else "fp32"


def _flavor(engine: Path) -> str | None:
    try:
        return read_record(engine).flavor
    except CheckpointError:
        return None


def _torch_runner(opener: ModelOpener, path: Path, precision: Precision | None, device: str | None) -> Runner:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TorchRunner(opener(path), precision=precision or "fp32", device=device)


def _plugin_library() -> Path | None:
    from vitslim.plugin import plugin_library

    return plugin_library()
