"""The forms in which the kernels of sparse attention are compiled ahead of time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import triton

from vitslim.kernels.triton.bit_attention import bit_attention_kernel
from vitslim.kernels.triton.bit_attention_backward import query_gradient_kernel, row_products_kernel
from vitslim.kernels.triton.compiling import KernelForm
from vitslim.kernels.triton.key_choice import key_choice_kernel, key_choice_sizes
from vitslim.kernels.triton.key_gradient import key_gradient_kernel
from vitslim.kernels.triton.launching import padded
from vitslim.kernels.triton.pieces import live_blocks_kernel
from vitslim.kernels.triton.tile_attention import tile_attention_kernel
from vitslim.kernels.triton.topk import topk_sum_kernel
from vitslim.kernels.triton.tuning import Blocks, rule

_NAMES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
# DeiT and ViT have heads of 64; 128 is the widest, 48 one that is padded; float32 takes the most shared memory.
_USUAL = (
    ("float16", 64, 64, 577),
    ("bfloat16", 64, 64, 4097),
    ("float16", 48, 48, 197),
    ("bfloat16", 128, 128, 1025),
    ("float32", 64, 64, 197),
)
_WHOLE = ("bits", "lists", "counts")


def forms() -> list[KernelForm]:
    """Every kernel, at the sizes that differ in what they ask of a GPU."""
    return [*_attention_forms(), *_live_forms(), *_choice_forms()]


def _attention_forms() -> Iterator[KernelForm]:
    kernels = {
        "bit_attention": (bit_attention_kernel,),
        "bit_attention_backward": (row_products_kernel, query_gradient_kernel, key_gradient_kernel),
        "tile_attention": (tile_attention_kernel,),
    }
    for family, members in kernels.items():
        # Float32 of the widest heads, and of values alone as wide.
        for dtype, width, value_width, tokens in (*_USUAL, ("float32", 128, 128, 577), ("float32", 32, 128, 577)):
            blocks = rule(family, dtype, padded(max(width, value_width)), tokens)
            # One class token, and keys of every query: the usual case.
            ones = () if dtype == "float32" else ("prefix",) if family == "tile_attention" else ("prefix", "tile")
            for kernel in members:
                form = _form(
                    kernel,
                    f"{dtype} widths {width}, {value_width} tokens {tokens}",
                    dtype,
                    (width, value_width),
                    blocks,
                )
                yield _with_ones(form, ones)


def _form(kernel: Any, what: str, dtype: str, widths: tuple[int, int], blocks: Blocks) -> KernelForm:
    width, value_width = widths
    constants = {
        "WIDTH": width,
        "VALUE_WIDTH": value_width,
        "BLOCK_E": padded(width),
        "BLOCK_F": padded(value_width),
        "BLOCK_Q": blocks.queries,
        "BLOCK_K": blocks.keys,
        "LISTED": blocks.listed,
        "PRECISION": "tf32x3" if dtype == "float32" else "tf32",
    }
    names: list[str] = kernel.arg_names
    types = {name: _type_of(name, _NAMES[dtype]) for name in names if name not in constants}
    aligned = [
        name for name, kind in types.items() if kind.startswith("*") or name.endswith(("_image", "_head", "_row"))
    ]
    return KernelForm(
        f"{kernel.__name__} {what}",
        kernel,
        types,
        {name: value for name, value in constants.items() if name in names},
        tuple(aligned),
        blocks.warps,
        blocks.stages,
    )


def _with_ones(form: KernelForm, names: tuple[str, ...]) -> KernelForm:
    """The form with some numbers known to be 1, which is how a launch specialises them."""
    types = {name: kind for name, kind in form.types.items() if name not in names}
    ones = {name: 1 for name in names if name in form.types}
    return replace(form, types=types, constants={**form.constants, **ones})


def _type_of(name: str, dtype: str) -> str:
    if name in _WHOLE:
        return "*i32"
    whole = {"kept": "*i64", "lse": "*fp32", "products": "*fp32", "scale": "fp32"}
    tensors = ("query", "key", "value", "out", "grad", "grad_query", "grad_key", "grad_value")
    return whole.get(name) or (f"*{dtype}" if name in tensors else "i32")


def _live_forms() -> Iterator[KernelForm]:
    numbers = ("tokens", "words", "tile", "tiles", "prefix")
    types = {name: _type_of(name, "") for name in (*_WHOLE, *numbers)}
    for of_queries in (True, False):
        constants = {"BLOCK_Q": 64, "BLOCK_K": 64, "OF_QUERIES": of_queries}
        what = "of queries" if of_queries else "of keys"
        form = KernelForm(f"live_blocks_kernel {what}", live_blocks_kernel, types, constants, _WHOLE, 1)
        yield from (form, _with_ones(replace(form, name=f"{form.name}, one by one"), ("prefix", "tile")))


def _choice_forms() -> Iterator[KernelForm]:
    pointers = ("coefficients", "basis", "scores")
    types = dict.fromkeys(pointers, "*fp32")
    numbers = ("basis_image", "rows", "directions", "tokens", "width", "top", "keys", "prefix")
    for tokens, directions, given, to_bits in (
        (197, 32, False, True),
        (197, 32, False, False),
        (577, 96, False, True),
        (1025, 170, True, True),
        (4097, 682, True, True),
        (4097, 682, True, False),
    ):
        sizes, options = key_choice_sizes(tokens, directions, given=given)
        constants = {"GIVEN": given, "TOPK": not given, "TO_BITS": to_bits, **sizes}
        what = f"tokens {tokens} {'scores given' if given else 'fused'} to {'bits' if to_bits else 'indices'}"
        all_types = types | {"chosen": "*i32" if to_bits else "*i64"} | dict.fromkeys(numbers, "i32")
        form = KernelForm(
            f"key_choice_kernel {what}",
            key_choice_kernel,
            all_types,
            constants,
            (*pointers, "chosen"),
            options["num_warps"],
            options["num_stages"],
        )
        yield form if given else _with_ones(form, ("prefix",))
    counts = dict.fromkeys(("patches", "directions", "tile", "tiles", "top"), "i32")
    for directions in (32, 682):
        yield KernelForm(
            f"topk_sum_kernel directions {directions}",
            topk_sum_kernel,
            {"coefficients": "*fp32", "summed": "*fp32"} | counts,
            {"BLOCK_P": 16 if directions == 32 else 4, "BLOCK_M": triton.next_power_of_2(directions)},
            ("coefficients", "summed"),
        )
