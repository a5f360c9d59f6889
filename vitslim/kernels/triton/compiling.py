"""Compiling the Triton kernels ahead of time, for GPUs that need not be there.

A module of this package that holds kernels has a function ``forms()``, which gives the forms of its kernels that are
worth compiling: types of the arguments, values of the constants. The modules are found by that function, so there is
no list to keep.

Kernels are written as ``@triton.jit`` over ``@no_type_check``: the run-time shape checks of the tests would wrap the
function, and Triton reads its source.
"""

import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitslim.errors import CheckFailedError, ConfigError

CAPABILITIES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities (8.0 is 80) that every kernel compiles for: A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50."""

SHARED_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Shared memory that one block of threads may have. Source: CUDA C++ Programming Guide, technical specifications."""


@dataclass(frozen=True)
class KernelForm:
    """One kernel with its types and constants fixed, ready to compile.

    Args:
        name: the kernel and what is special about this form, such as ``tile_attention_kernel fp16 widths 64, 64``.
        kernel: what ``triton.jit`` made.
        types: Triton's type of each argument that is no constant, by name: ``*fp16``, ``i32``, ``fp32``.
        constants: the value of each constexpr argument, by name.
        multiples: numbers that arguments are multiples of (pointers: in bytes); 16 is what lets loads become wide.
        warps: groups of 32 threads.
        stages: depth of the software pipeline.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    multiples: Mapping[str, int] = field(default_factory=dict[str, int])
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class CompiledKernel:
    """What the assembler says of a kernel.

    Args:
        form, capability: what was compiled.
        registers, spilled_bytes: of a thread.
        shared_bytes: of a program.
        threads: of a program.
        entry: name of the kernel in the code.
        hidden: pointers behind the arguments, to memory for Triton's own use, of which this kernel wants none.
        ptx, cubin: the assembler's text and the machine code.
    """

    form: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    threads: int
    entry: str
    hidden: int
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)


def forms() -> list[KernelForm]:
    """The forms of all kernels of this package."""
    package = __name__.rpartition(".")[0]
    names = [f"{package}.{found.name}" for found in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(name) for name in names if name != __name__]
    return [form for module in modules if hasattr(module, "forms") for form in module.forms()]


def compile_form(form: KernelForm, capability: int, *, ptx_version: int | None = None) -> CompiledKernel:
    """Compile one kernel for one architecture; neither a GPU nor a driver is needed.

    Args:
        form: the kernel.
        capability: of the architecture, 9.0 is 90.
        ptx_version: 84 is 8.4; not given means the newest that Triton's assembler knows, which drivers may not.

    Raises:
        ConfigError: Triton is interpreting, or the form does not name every argument of its kernel once.
        CheckFailedError: the kernel wants more shared memory than the architecture has, or memory of its own.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = _argument_names(form)
    types = {name: form.types.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", number]] for name, number in form.multiples.items()}
    source = ASTSource(form.kernel, types, dict(form.constants), attributes)
    # Fused multiply-add is said outright: Triton 3.10 changes its default, and 3.9 warns of that.
    options = {"num_warps": form.warps, "num_stages": form.stages, "enable_fp_fusion": True}
    options |= {} if ptx_version is None else {"ptx_version": ptx_version}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    shared, most = compiled.metadata.shared, SHARED_BYTES.get(capability)
    if most is not None and shared > most:
        raise CheckFailedError(
            f"{form.name} wants {shared} bytes of shared memory, sm_{capability} has {most}; choose smaller blocks or "
            "fewer stages"
        )
    entry, ptx, cubin = compiled.metadata.name, compiled.asm["ptx"], compiled.asm["cubin"]
    if compiled.metadata.global_scratch_size or compiled.metadata.profile_scratch_size:
        raise CheckFailedError(f"{form.name} wants memory of its own on sm_{capability}, which nobody gives it")
    registers, spilled = _resources(cubin)
    hidden = len(parameters_of(ptx, entry)) - len(form.types)
    return CompiledKernel(form.name, capability, registers, spilled, shared, 32 * form.warps, entry, hidden, ptx, cubin)


def parameters_of(ptx: str, entry: str) -> list[str]:
    """The declarations of a kernel's parameters in PTX."""
    found = re.search(rf"\.entry {entry}\(\n(.*?)\n\)", ptx, re.DOTALL)
    if found is None:
        raise CheckFailedError(f"Triton's PTX does not declare {entry}; this version of Triton is not supported")
    return found[1].split(",\n")


def _argument_names(form: KernelForm) -> list[str]:
    names = getattr(form.kernel, "arg_names", None)
    if names is None or not hasattr(form.kernel, "cache_key"):
        raise ConfigError("Triton is interpreting its kernels; unset TRITON_INTERPRET before Python starts")
    given = [*form.types, *form.constants]
    if sorted(given) != sorted(names) or not set(form.multiples) <= set(form.types):
        raise ConfigError(f"{form.name} gives {sorted(given)}; wanted each of {sorted(names)} once")
    return list(names)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes of its stack, which is where registers are spilled to."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (re.search(rf"\b{what}:(\d+)", text) for what in ("REG", "STACK"))
    if registers is None or stack is None:
        raise CheckFailedError(f"cuobjdump does not tell the registers of a kernel, but: {text.strip()[:200]}")
    return int(registers[1]), int(stack[1])
