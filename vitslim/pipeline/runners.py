"""Running what was saved or exported, with the best backend that is here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vitslim import checkpoint
from vitslim.arguments import checked
from vitslim.errors import CheckpointError, ConfigError, VitslimError
from vitslim.models import preprocessing
from vitslim.names import did_you_mean
from vitslim.runtime import EngineRecord, Precision, Runner, TorchRunner
from vitslim.shapes import AnyPath
from vitslim.targets import TARGETS, Backend, Opening, Target, find_backend, target_of
from vitslim.targets.base import backend_names
from vitslim.targets.input_format import InputFormat, as_given_to, format_of

_Candidate = tuple[str, Callable[[], Runner]]


@checked
def open_runner(
    path: AnyPath,
    *,
    backend: str | None = None,
    precision: Precision | None = None,
    device: str | None = None,
    threads: int | None = None,
    on_skip: Callable[[str], object] | None = None,
) -> Runner:
    """Open a saved folder, or one exported file, with the best backend that is here; ``.backend`` says which it is.

    The order for a folder is: a TensorRT engine that fits the machine, ONNX Runtime on the GPU, ONNX Runtime on the
    CPU, OpenVINO, torch. Where it holds files of several precisions the lowest comes first on a GPU, float32 on the
    CPU. What opens from a folder takes normalised images; a file for bytes is opened by its own path.

    Args:
        path: a folder that ``vitslim.save`` wrote, with its exports in ``export/``; or an exported file.
        backend: ``torch`` or one of ``vitslim list targets``, then used or refused; ``None`` for the best.
        precision: only this one.
        device: of torch; ``None`` for a GPU where there is one.
        threads: of the CPU; ``None`` for as many as the backend likes.
        on_skip: called with a sentence for every better backend that could not be used.

    Raises:
        ConfigError: an unknown backend, or nothing there that it reads.
        CheckpointError: nothing there can be opened.
        MissingDependencyError: what the given backend needs is not here.
    """
    path = Path(path)
    wanted = None if backend is None else _backend(backend)
    if path.is_dir() and not any(target.reads(path) for _, target in TARGETS.items()):
        candidates = _exports(path, wanted, precision, threads)
        if backend in (None, "torch") and checkpoint.is_saved_model(path):
            candidates.append(("torch", lambda: _torch_runner(path, precision, device)))
    else:
        candidates = _of_file(path, backend, threads)
    return _first(candidates, path, backend, on_skip)


def _first(
    candidates: list[_Candidate], path: Path, backend: str | None, on_skip: Callable[[str], object] | None
) -> Runner:
    reasons: list[str] = []
    for title, opened in candidates:
        try:
            return opened()
        except VitslimError as error:
            if len(candidates) == 1:
                raise
            reasons.append(f"{title}: {error}")
            if on_skip is not None:
                on_skip(reasons[-1])
    if reasons:
        raise CheckpointError(f"nothing of {path} could be opened: {'; '.join(reasons)}")
    files = [file for file in sorted((path / "export").glob("*")) if _takes_bytes(file)]
    raw = ", ".join(file.name for file in files if any(target.reads(file) for _, target in TARGETS.items()))
    passed_over = f" for normalised images ({raw} takes bytes; open it by its own path)" if raw else ""
    to = "onnx" if backend is None else _backend(backend)[0].name
    raise ConfigError(
        f"{path} holds nothing that {'any backend' if backend is None else f'backend {backend!r}'} reads{passed_over}; "
        f"make it with `vitslim export {path} --to {to}`"
    )


def _backend(name: str) -> tuple[Target, Backend]:
    target, backend = find_backend(name)
    if backend.in_torch and name != "torch":
        names = [one for one in backend_names() if not find_backend(one)[1].in_torch]
        hint = did_you_mean(name, names) or f"; wanted torch, {', '.join(names)}"
        raise ConfigError(f"backend {name!r} is for benchmarks{hint}")
    return target, backend


def _of_file(path: Path, backend: str | None, threads: int | None) -> list[_Candidate]:
    target = target_of(path, backend)
    named = [_backend(backend)[1]] if backend is not None else _by_preference(target) or [target.backends[0]]
    return [
        (one.name, lambda one=one: target.load(path, Opening(one.name, threads=threads, keeps_compiled=True)))
        for one in named
    ]


def _by_preference(target: Target) -> list[Backend]:
    here = [one for one in target.backends if one.preference is not None and _is_here(one)]
    return sorted(here, key=lambda one: -(one.preference or 0))


def _is_here(backend: Backend) -> bool:
    # An engine says itself, better than we could here, on what it would run.
    return not backend.needs_gpu or backend.per_batch or torch.cuda.is_available()


def _exports(
    folder: Path, wanted: tuple[Target, Backend] | None, precision: Precision | None, threads: int | None
) -> list[_Candidate]:
    files = [file for file in sorted((folder / "export").glob("*")) if not _takes_bytes(file)]
    offered = [(target, backend) for _, target in TARGETS.items() for backend in _by_preference(target)]
    found: list[_Candidate] = []
    for target, backend in [wanted] if wanted else sorted(offered, key=lambda one: -(one[1].preference or 0)):
        for file in _by_precision([one for one in files if target.reads(one)], precision, on_gpu=backend.needs_gpu):
            found.append(
                (
                    f"{file.name} in {backend.name}",
                    lambda target=target, backend=backend, file=file: target.load(
                        file, Opening(backend.name, threads=threads, keeps_compiled=True)
                    ),
                )
            )
    return found


def _by_precision(files: list[Path], precision: Precision | None, *, on_gpu: bool) -> list[Path]:
    ranks = {"fp16": 0, "bf16": 1, "fp32": 2} if on_gpu else {"fp32": 0, "fp16": 1, "bf16": 2}
    ranks["int8"] = 3
    named = [(_precision_in_name(file), file) for file in files]
    # Of files that compute the same, the one with the plainest name.
    return [
        file
        for _, _, file in sorted((ranks[of], len(file.name), file) for of, file in named if precision in (None, of))
    ]


def _takes_bytes(file: Path) -> bool:
    return "-uint8-" in file.name


def _precision_in_name(file: Path) -> Precision:
    last = file.stem.rpartition("-")[2]
    return last if last in ("fp16", "bf16", "int8") else "fp32"


def _torch_runner(path: Path, precision: Precision | None, device: str | None) -> Runner:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TorchRunner(checkpoint.load(path), precision=precision or "fp32", device=device)


class RunnerModule(nn.Module):
    """A runner in a module's clothes, for what measures modules."""

    def __init__(self, runner: Runner, model: nn.Module) -> None:
        super().__init__()
        self.runner = runner
        self.num_classes = getattr(model, "num_classes", 0)
        self.preprocessing = preprocessing(model)
        self.input_format: InputFormat = format_of(runner.metadata)
        # Who measures a module finds its device by its first parameter.
        self.device_marker = nn.Parameter(torch.empty(0, device=runner.device), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images``; more than the file takes at once are run in parts."""
        least, most = _batches(self.runner)
        given = images
        if self.input_format != "normalized":
            given = as_given_to(self.input_format, images.cpu(), self.preprocessing)[0].to(images.device)
        return torch.cat([self._run(part, least) for part in given.split(most or len(given))])

    def _run(self, part: Tensor, least: int) -> Tensor:
        # Too few are filled up, and what was filled in is dropped again.
        rows = torch.arange(max(least, len(part)), device=part.device) % len(part)
        return self.runner.run(part[rows])[: len(part)]


def _batches(runner: Runner) -> tuple[int, int | None]:
    """The least and the most images that a runner takes; ``None`` for any number."""
    record = getattr(runner, "record", None)
    if isinstance(record, EngineRecord):
        return record.profiles[0].min[0], record.profiles[0].max[0]
    fixed = runner.inputs[0].batch
    return fixed or 1, fixed
