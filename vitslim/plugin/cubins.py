"""The tile kernel (``vitslim.kernels.triton.tile_attention``) compiled ahead of time, by Triton; no GPU is needed.

One source serves torch, the library that TensorRT loads, and the plugin that TensorRT bakes into an engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitslim.errors import CheckFailedError, ConfigError, MissingDependencyError, VitslimError
from vitslim.files import read_json

ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
"""A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50."""

WIDTHS = (32, 64, 72, 80, 88, 96, 128)
"""Of the heads of ViTs, from DeiT (64) to SigLIP's So400m (72) and the giants (88, 96)."""

PRECISIONS = ("fp32", "fp16", "bf16")
PORTABLE = 80
"""PTX for it runs on every later GPU; that for 9.0 and later names features of one architecture alone."""

# A program owns as many queries, of whatever tile. float32 is there for blocks whose values half precision cannot hold.
_TILES = {"fp32": (16,), "fp16": (16, 32, 64), "bf16": (16, 32, 64)}
_MOST_HIDDEN = 2
_FREE_SHARED_BYTES = 48 * 1024  # what a program may have without asking the driver


@dataclass(frozen=True)
class TileSpec:
    """What is fixed when the kernel is compiled; see ``tile_attention.packed_form``.

    Args:
        capability: compute capability, 9.0 is 90.
        precision: of queries, keys, values and result; scores, softmax and sums are float32.
        width: of one head.
        tile: patch queries that share a key set.
        fixed: arguments that are constants.
    """

    capability: int
    precision: str
    width: int
    tile: int
    fixed: tuple[tuple[str, int | float], ...] = ()


@dataclass(frozen=True)
class TileKernel:
    """A compiled kernel and how to start it.

    Args:
        queries: of one tile that a program owns.
        threads, shared_bytes: of a program.
        registers, spilled_bytes: of a thread.
        entry: its name in the code.
        hidden: parameters behind those of the source, null pointers.
        code: cubin, or PTX where ``is_ptx``.
    """

    spec: TileSpec
    queries: int
    threads: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    entry: str
    hidden: int
    is_ptx: bool
    code: bytes = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """What of it stands in a build's record."""
        names = ("queries", "registers", "spilled_bytes", "shared_bytes", "threads", "is_ptx")
        chosen = {name: getattr(self, name) for name in names}
        spec = {"capability": self.spec.capability, "precision": self.spec.precision, "width": self.spec.width}
        return {**spec, **chosen, "bytes": len(self.code)}


def library_specs(architectures: Sequence[str], widths: Sequence[int]) -> list[TileSpec]:
    """The kernels of a library."""
    return [
        TileSpec(int(architecture), precision, width, tile)
        for architecture in architectures
        for precision in PRECISIONS
        for width in widths
        for tile in _TILES[precision]
    ]


def compile_tiles(specs: Sequence[TileSpec], *, ptx: bool = False) -> list[TileKernel]:
    """Compile kernels in processes of their own, one for each core, in which Triton does not interpret.

    Args:
        ptx: PTX in place of cubins.

    Raises:
        MissingDependencyError: no Triton.
        CheckFailedError: Triton failed, for instance on an architecture that it does not know, or the kernel does not
            fit the architecture.
    """
    require_triton()
    cores = len(os.sched_getaffinity(0))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # Line numbers are three quarters of a cubin.
    environment |= {"TRITON_DISABLE_LINE_INFO": "1", "PYTHONPATH": os.pathsep.join([_PACKAGE, *_search_path()])}
    with tempfile.TemporaryDirectory(prefix="vitslim-cubins-") as scratch:
        running: list[subprocess.Popen[str]] = []
        for worker in range(min(cores, len(specs))):
            request = Path(scratch) / f"request-{worker}.json"
            own = {index: asdict(spec) for index, spec in enumerate(specs) if index % cores == worker}
            request.write_text(json.dumps({"specs": own, "ptx": ptx}), "utf-8")
            command = [sys.executable, "-c", _WORKER, str(request)]
            running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        said = [one.communicate()[1] for one in running]
        failed = next((text for one, text in zip(running, said, strict=True) if one.returncode != 0), None)
        if failed is not None:
            raise _reason(failed)
        return [_read(spec, Path(scratch) / str(index), ptx=ptx) for index, spec in enumerate(specs)]


def baked_kernel(spec: TileSpec) -> TileKernel:
    """PTX of one kernel without hidden parameters, for those who start kernels with the arguments of the source alone.

    Raises:
        VitslimError: see ``compile_tiles``.
        CheckFailedError: the kernel uses a hidden parameter, or more shared memory than a launch gives unasked.
    """
    from vitslim.kernels.triton.compiling import parameters_of

    (kernel,) = compile_tiles([spec], ptx=True)
    if kernel.shared_bytes > _FREE_SHARED_BYTES:
        raise CheckFailedError(f"{spec} wants {kernel.shared_bytes} bytes of shared memory; there are 48 KiB")
    text = kernel.code.decode()
    declared = parameters_of(text, kernel.entry)
    kept = declared[: len(declared) - kernel.hidden]
    for name in (line.split()[-1] for line in declared[len(kept) :]):
        if text.count(name) != 1:
            raise CheckFailedError(f"{spec}: the kernel reads {name}; this version of Triton is not supported")
    text = text.replace(",\n".join(declared), ",\n".join(kept))
    return replace(kernel, hidden=0, code=text.encode())


def require_triton() -> None:
    """Refuse where kernels cannot be compiled.

    Raises:
        MissingDependencyError: no Triton.
    """
    if find_spec("triton") is None:
        raise MissingDependencyError("Triton, which compiles the kernel, is not here; it comes with torch for Linux")


def triton_version() -> str | None:
    """As in ``3.6.0``; ``None`` where it is not installed."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def checked_architectures(wanted: Sequence[str]) -> tuple[str, ...]:
    """Compute capabilities in rising order, written as ``90``.

    Args:
        wanted: ``90``, ``9.0`` or ``sm_90``.

    Raises:
        ConfigError: none, one that is not written so, or one before 8.0, whose tensor cores have no bfloat16.
    """
    names = [text.strip().removeprefix("sm_").replace(".", "") for text in wanted]
    for given, name in zip(wanted, names, strict=True):
        if not (name.isascii() and name.isdecimal() and PORTABLE <= int(name) < 1000):
            raise ConfigError(f"architecture {given!r}: wanted compute capabilities from 8.0 on, such as 80,90,120")
    if not names:
        raise ConfigError("no architecture was given; wanted compute capabilities such as 80,90,120")
    return tuple(sorted(set(names), key=int))


_PACKAGE = str(Path(__file__).parents[2])
_WORKER = "import sys; from vitslim.plugin.cubins import compile_request; compile_request(sys.argv[1])"


def compile_request(path: str) -> None:
    """What a process of ``compile_tiles`` does: each kernel leaves its code and what is known of it beside the request.

    Args:
        path: of the JSON file that says which kernels.
    """
    from vitslim.kernels.triton.compiling import compile_form
    from vitslim.kernels.triton.tile_attention import packed_form, queries_of

    request = read_json(Path(path))
    for index, given in request["specs"].items():
        fixed = dict(given["fixed"])
        tile = min(given["tile"], max(_TILES[given["precision"]]))
        form = packed_form(given["precision"], given["width"], tile, fixed)
        known_ptx = _ptx_version(given["capability"]) if request["ptx"] else None
        made = compile_form(form, given["capability"], ptx_version=known_ptx)
        while request["ptx"] and made.shared_bytes > _FREE_SHARED_BYTES and form.stages > 1:
            form = replace(form, stages=form.stages - 1)
            made = compile_form(form, given["capability"], ptx_version=known_ptx)
        known = {"queries": queries_of(form), "threads": made.threads, "entry": made.entry, "hidden": made.hidden}
        known |= {name: getattr(made, name) for name in ("shared_bytes", "registers", "spilled_bytes")}
        place = Path(path).with_name(index)
        place.write_bytes(made.ptx.encode() if request["ptx"] else made.cubin)
        place.with_suffix(".json").write_text(json.dumps(known), "utf-8")


def _ptx_version(capability: int) -> int:
    """The oldest that knows the architecture's tensor cores; a driver takes no newer PTX than its own."""
    return 80 if capability <= 90 else {100: 86, 120: 87}.get(capability, 88)


def _read(spec: TileSpec, place: Path, *, ptx: bool) -> TileKernel:
    kernel = TileKernel(spec=spec, is_ptx=ptx, code=place.read_bytes(), **read_json(place.with_suffix(".json")))
    if kernel.hidden > _MOST_HIDDEN:
        raise CheckFailedError(
            f"Triton gives the kernel {kernel.hidden} hidden parameters, the launcher passes {_MOST_HIDDEN}; use a "
            "version of Triton that vitslim supports"
        )
    return kernel


def _search_path() -> list[str]:
    given = os.environ.get("PYTHONPATH")
    return [] if not given else given.split(os.pathsep)


def _reason(log: str) -> VitslimError:
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["it said nothing"]
    return CheckFailedError(f"Triton did not compile the kernel: {lines[-1][:300]}")
