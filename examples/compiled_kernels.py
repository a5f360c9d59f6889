"""What the compiler says of the Triton kernels, as DeiT-S and DeiT-B launch them, for every architecture.

    python examples/compiled_kernels.py   # -> examples/results/kernels_compiled.json; a few minutes, no GPU

Every launch is recorded as it would happen, on tensors without memory, and compiled with what Triton would know of its
arguments: types, multiples of 16, ones.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitslim.bench import environment
from vitslim.files import write_json
from vitslim.kernels.triton import skip_function, tap_gradient, tile_attention, token_selection
from vitslim.kernels.triton.compiling import CAPABILITIES, CompiledKernel, KernelForm, compile_form

PATH = Path(__file__).parent / "results" / "kernels_compiled.json"
MODELS = {"DeiT-S": 6, "DeiT-B": 12}  # heads of 64
BATCHES = (1, 32, 256)
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
MULTIPROCESSORS = 132  # of an H100 or H200
# Of one multiprocessor. Source: CUDA C++ Programming Guide, technical specifications, capability 9.0.
REGISTERS, SHARED_BYTES, THREADS, PROGRAMS = 65_536, 233_472, 2_048, 32


def launches(heads: int, images: int) -> list[tuple[str, KernelForm, int]]:
    """What one model launches in a call: the name of each launch, its kernel, how many programs."""
    found: list[tuple[str, KernelForm, int]] = []
    made: list[tuple[str, KernelForm, int]] = []

    def record(kernel: Any, programs: int | tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        grid = (programs,) if isinstance(programs, int) else programs
        kinds = f" {constants['FORM']}" if "FORM" in constants else " back" if constants.get("SCATTER") else ""
        made.append((kernel.__name__ + kinds, form_of(kernel, arguments, constants), math.prod(grid)))

    modules = (skip_function, tap_gradient, tile_attention, token_selection)
    kept = [module.launch for module in modules]
    for module in modules:
        module.launch = record
    try:
        for place, call in calls(heads, images).items():
            call()
            found += [(f"{name}, {place}", form, programs) for name, form, programs in made]
            made.clear()
    finally:
        for module, launch in zip(modules, kept, strict=True):
            module.launch = launch
    return found


def calls(heads: int, images: int) -> dict[str, Callable[[], object]]:
    """Φ of SkipAt and a selection of Evo-ViT at 224 px, attention in tiles at 512 px; bf16."""
    width, made = 64 * heads, {}

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    for expansion in (2.0, 0.5):
        hidden = int(expansion * width)
        given = (empty(images, 197, hidden), empty(hidden, 1, 5, 5), empty(hidden), 14, 14)
        made[f"Φ, expansion {expansion:g}"] = lambda given=given: skip_function.depthwise_gelu_backward(
            torch.empty_like(given[0][:, 1:]), *given
        )
        made[f"Φ, expansion {expansion:g}, forward"] = lambda given=given: skip_function.depthwise_gelu(*given)
    query, key, _ = empty(images, 197, 3, heads, 64).permute(2, 0, 3, 1, 4).unbind(0)
    made["selection"] = lambda: token_selection.class_row(query[:, :, :1], key, 0.125)
    made["selection, order"] = lambda: token_selection.argsort_by_score(empty(images, 196, dtype=torch.float32), 1)
    indices, rows = empty(images, 197, dtype=torch.int64), empty(images, 197, width)
    made["selection, rows"] = lambda: token_selection.moved(rows, rows[:, :0], indices, 99, scatter=False)
    made["selection, rows back"] = lambda: token_selection.moved(rows[:, :99], rows[:, 99:], indices, 197, scatter=True)
    wide = empty(images, 1025, 3, heads, 64).permute(2, 0, 3, 1, 4).unbind(0)
    chosen = empty(images, heads, 16, 257, dtype=torch.int64)
    made["1,025 tokens, 257 keys"] = lambda: tile_attention.attend(*wide, chosen, 64, 1, 0.125)
    return made


def form_of(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> KernelForm:
    """The form that Triton compiles for these arguments."""
    if "PRECISION" in constants:
        constants["PRECISION"] = (
            "tf32"  # which tensors without memory are not asked for; of half precision it says nothing
        )
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    types: dict[str, str] = {}
    multiples: dict[str, int] = {}
    for name, given in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(given, Tensor):
            types[name] = TYPES[given.dtype]
        elif given == 1:
            constants[name] = 1
        else:
            types[name] = "fp32" if isinstance(given, float) else "i32" if abs(given) < 2**31 else "i64"
        if isinstance(given, Tensor) or (isinstance(given, int) and given != 1 and given % 16 == 0):
            multiples[name] = 16
    warps, stages = options.get("num_warps", 4), options.get("num_stages", 3)
    return KernelForm(kernel.__name__, kernel, types, constants, multiples, warps=warps, stages=stages)


def programs_at_once(kernel: CompiledKernel) -> int:
    """Of an H100, by registers, shared memory and threads."""
    own = 8 * math.ceil(kernel.registers / 8) * kernel.threads
    # Each program takes 1 KiB more than it asks for.
    limits = (REGISTERS // own, SHARED_BYTES // (kernel.shared_bytes + 1024), THREADS // kernel.threads, PROGRAMS)
    return MULTIPROCESSORS * min(limits)


def main() -> None:
    known: dict[str, dict[int, CompiledKernel]] = {}
    rows: list[dict[str, Any]] = []
    for model, heads in MODELS.items():
        for images in BATCHES:
            for name, form, programs in launches(heads, images):
                key = repr((form.name, form.types, form.constants, form.multiples))
                if key not in known:
                    known[key] = {capability: compile_form(form, capability) for capability in CAPABILITIES}
                made = known[key].values()
                at_once = programs_at_once(known[key][90])
                figures = {one.capability: [one.registers, one.spilled_bytes, one.shared_bytes] for one in made}
                place = {"model": model, "batch": images, "launch": name, "programs": programs, "at_once": at_once}
                rows.append({**place, "compiled": figures})
                print(rows[-1], file=sys.stderr, flush=True)
    command = "python examples/compiled_kernels.py"
    write_json(PATH, {"command": command, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
