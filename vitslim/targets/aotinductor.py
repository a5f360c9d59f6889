"""A model compiled ahead of time by torch's Inductor, for programs in C++ or Python without a compiler at run time."""

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitslim.errors import CheckpointError, MissingDependencyError, UnsupportedModelError
from vitslim.files import atomic_path
from vitslim.runtime import Precision
from vitslim.targets.base import ALL_PRECISIONS, ExportRequest, Opening, Target, Timing, register_target
from vitslim.targets.metadata import artifact_metadata
from vitslim.targets.quiet import captured
from vitslim.targets.torch_export import (
    ProgramExport,
    ProgramRunner,
    describe_program,
    holds_machine_code,
    require_same_numbers,
    traced_program,
)

_COMPILERS = ("g++", "clang++", "c++")


class AotPackage(ProgramExport):
    """A package that was compiled, loaded back and compared.

    Args:
        device: that it runs on.
        bound_to: processor and torch version that it was compiled for; others may refuse it or crash.
    """

    device: str
    bound_to: dict[str, str]


def compile_package(
    model: nn.Module,
    path: str | Path,
    images: Tensor,
    *,
    precision: Precision = "fp32",
    device: torch.device | None = None,
) -> AotPackage:
    """Compile ``model`` into a package: float32 images of any batch in, float32 logits (or features) out.

    It is opened with ``torch._inductor.aoti_load_package(path)`` or, in C++, ``AOTIModelPackageLoader``; neither needs
    vitslim.

    Args:
        model: dense or converted; stays as it is.
        path: of the package, ``.pt2``.
        images: some, normalised as the model expects; what is loaded back is compared on them.
        precision: of weights and arithmetic.
        device: ``None`` for the CPU.

    Raises:
        MissingDependencyError: no C++ compiler.
        UnsupportedModelError: torch cannot trace or compile the model.
        CheckFailedError: what was loaded back does not compute the same.
        CheckpointError: the file cannot be written; what lay there is unchanged.
    """
    require_compiler()
    target = Path(path)
    device = device or torch.device("cpu")
    program, spelled_out = traced_program(model, precision, device)
    bound_to = {"torch": torch.__version__, "machine": platform.machine(), **_processor(device)}
    metadata = artifact_metadata(model, precision, {"bound_to": bound_to})
    with tempfile.TemporaryDirectory() as folder:
        package = _compile(program, Path(folder) / "model.pt2", metadata)
        comparisons = require_same_numbers(model, open_package(package, target.name), images)
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        with atomic_path(target) as scratch:
            shutil.copyfile(package, scratch)
    return AotPackage(
        file=target,
        precision=precision,
        device=str(device),
        bound_to=bound_to,
        size_bytes=target.stat().st_size,
        sha256=digest,
        spelled_out=spelled_out,
        comparisons=comparisons,
        metadata=metadata,
    )


def require_compiler() -> None:
    """Refuse before minutes of work where Inductor would find no C++ compiler.

    Raises:
        MissingDependencyError: there is none.
    """
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else _COMPILERS)):
        raise MissingDependencyError(
            f"AOTInductor needs a C++ compiler ({named or ' or '.join(_COMPILERS[:2])} was not found): "
            "apt-get install g++, or name one in the environment variable CXX"
        )


def _compile(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> Path:
    from torch._inductor import aoti_compile_and_package

    try:
        with captured():
            aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"aot_inductor.metadata": metadata}
            )
    except OSError as error:
        raise CheckpointError(f"the package cannot be written ({error.strerror or error})") from error
    except Exception as error:  # Inductor and the compiler raise a dozen unrelated classes
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UnsupportedModelError(
            f"Inductor cannot compile this model: {type(error).__name__}: {' '.join(lines[:3])}"
        ) from error
    return path


def _processor(device: torch.device) -> dict[str, str]:
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(device)}
    # Inductor writes for the widest vectors of the processor at hand.
    return {"vectors": torch.backends.cpu.get_cpu_capability()}


def open_package(path: Path, name: str) -> ProgramRunner:
    """A package that was compiled, ready to run: its machine code is loaded.

    Raises:
        CheckpointError: it cannot be loaded here, or vitslim did not write it.
    """
    try:
        with captured():
            loaded: Any = torch._inductor.aoti_load_package(str(path))  # pyright: ignore[reportPrivateUsage]
            metadata: dict[str, str] = loaded.get_metadata()
    except Exception as error:  # of the linker, of CUDA, of torch
        raise CheckpointError(f"torch cannot load {name} ({error}); compile it here") from error
    device = str(metadata.get("AOTI_DEVICE_KEY", "cpu"))
    return ProgramRunner(loaded, metadata, backend="aotinductor", device=device, name=name)


@register_target("aotinductor")
class AotInductorTarget(Target):
    """A compiled ``.pt2`` package, checked against its model before it is kept."""

    title = "AOTInductor package"
    suffix = ".pt2"
    precisions = ALL_PRECISIONS
    is_code = True

    def reads(self, path: Path) -> bool:
        return super().reads(path) and holds_machine_code(path)

    def require(self, precision: Precision | None = None) -> None:
        require_compiler()

    def name_parts(self, options: Mapping[str, Any]) -> list[str]:
        return ["aoti", str(options.get("device", "cpu"))]

    def write(self, request: ExportRequest, *, device: str = "cpu") -> AotPackage:
        model, place = request.model(), torch.device(device)
        return compile_package(model, request.path, request.sample(model), precision=request.precision, device=place)

    def load(self, path: Path, how: Opening) -> ProgramRunner:
        return open_package(path, how.name or path.stem)

    def timing_options(self, how: Timing) -> dict[str, Any]:
        return {"device": how.device}

    def describe(self, written: Any, request: ExportRequest) -> list[str]:
        bound = ", ".join(written.bound_to.values())
        return [*describe_program(written, request), f"note: compiled for {bound}; other machines may refuse it"]
