"""Launches of a built library without a GPU, in a process of its own: ``-m tests.plugin.on_cpu DRIVER REQUEST``.

A stand-in for CUDA's driver takes the launch; the kernel's own source, run by Triton's interpreter with the very
arguments that were passed, computes it. What is compiled is compared byte by byte with what the library passes.
"""

import ctypes
import json
import sys

import torch

from vitslim.errors import VitslimError
from vitslim.kernels.sparse_attention import kept_mask, tile_count
from vitslim.kernels.triton.tile_attention import packed_form, queries_of, tile_attention_kernel
from vitslim.plugin.cubins import PORTABLE, TileSpec, compile_tiles
from vitslim.plugin.launching import declare, launch_library

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p)
)
POINTERS, NUMBERS = 4, 14


def operands(tokens, width, prefix, tile, keys, dtype):
    generator = torch.Generator().manual_seed(tokens)
    query, key, value = (torch.randn(2, 3, tokens, width, generator=generator).to(dtype) for _ in range(3))
    tiles = tile_count(tokens - prefix, tile)
    kept = torch.rand(2, 3, tiles, tokens, generator=generator).argsort(-1)[..., :keys].int().contiguous()
    return query, key, value, kept


def exact(query, key, value, kept, tile, prefix, scale):
    scores = query.double() @ key.double().transpose(-2, -1) * scale
    seen = kept_mask(kept.long(), key.shape[2], tile, prefix)
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value.double()


def passed(arguments, kinds):
    return [ctypes.cast(arguments[place], ctypes.POINTER(kind))[0] for place, kind in enumerate(kinds)]


def owned(precision, tile):
    """Float32 has one block size."""
    return 16 if precision == "fp32" else tile


def run(driver, library, kernel, capability, is_old, tokens, prefix, tile, keys):
    """What one launch did."""
    precision, width = kernel.spec.precision, kernel.spec.width
    dtype, scale = TYPES[precision], width**-0.5
    parts = operands(tokens, width, prefix, tile, keys, dtype)
    mixed = torch.full_like(parts[0], float("nan"))
    own = {part.data_ptr() or None: part for part in (*parts, mixed)}  # of no tiles there are no indices
    form = packed_form(precision, width, owned(precision, tile), {})
    launches = []

    def launch(code, grid, threads, shared, arguments):
        kinds = [ctypes.c_void_p] * POINTERS + [ctypes.c_int] * NUMBERS + [ctypes.c_float, ctypes.c_void_p]
        *values, scratch, profile = passed(arguments, [*kinds, ctypes.c_void_p, ctypes.c_void_p])
        launches.append(
            [grid, threads, shared, scratch, profile, ctypes.string_at(code, len(kernel.code)) == kernel.code]
        )
        names = [name for name in tile_attention_kernel.arg_names if name in form.types]
        given = {name: own.get(value, value) for name, value in zip(names, values, strict=True)}
        constants = {
            **form.constants,
            "PRECISION": "widened" if dtype == torch.bfloat16 else form.constants["PRECISION"],
        }
        tile_attention_kernel[(grid,)](**given, **constants)
        return 0

    callback = CALLBACK(launch)
    driver.test_begin(capability, is_old, callback)
    launch_library(library, (*parts, mixed), tile, prefix, scale, 0)
    wanted = exact(*parts, tile, prefix, scale)
    tiles = parts[3].shape[2]
    programs = 6 * (-(-prefix // queries_of(form)) + tiles * -(-tile // queries_of(form)))
    ((grid, threads, shared, scratch, profile, is_same),) = launches
    return {
        "difference": float((mixed.double() - wanted).abs().max()),
        "grid": grid == programs,
        "block": (threads, shared) == (kernel.threads, kernel.shared_bytes),
        "hidden": [scratch, profile],
        "same code": is_same,
        "loads": driver.test_loads(),
    }


def main():
    # Only now, so that nobody takes it for a driver of a GPU.
    driver = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
    request = json.loads(sys.argv[2])
    library = declare(ctypes.CDLL(request["library"]))
    known = {}
    for ptx in (False, True):
        specs = {spec_of(case) for case in request["cases"] if (case["compiled_for"] == PORTABLE) == ptx}
        known |= {kernel.spec: kernel for kernel in compile_tiles(list(specs), ptx=ptx)}
    done = []
    for case in request["cases"]:
        sizes = [case[name] for name in ("tokens", "prefix", "tile", "keys")]
        try:
            found = run(driver, library, known[spec_of(case)], case["capability"], case.get("is_old", False), *sizes)
        except VitslimError as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        done.append(found)
    sys.stdout.write(json.dumps(done))


def spec_of(case):
    tile = owned(case["precision"], case["tile"])
    return TileSpec(case["compiled_for"], case["precision"], case["width"], tile)


main()
