"""The plugin for those without TensorRT's headers: the same kernel, compiled by Triton, baked in by TensorRT.

TensorRT's Python plugins (``tensorrt.plugin``, experimental) ask once, while the engine is built, for PTX and for the
launch as expressions of the sizes; at run time no Python is left. Their scalars are whole numbers only, hence tile,
prefix and scale are compiled in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.plugin.cubins import PORTABLE, TileKernel, TileSpec, baked_kernel, require_triton

NAME = "SparseAttention"
NAMESPACE = "vitslim"
_PLUGIN_ID = f"{NAMESPACE}::{NAME}"
_TENSORS = ("query", "key", "value", "kept")
_ATTRIBUTES: dict[str, type] = {"tile": int, "prefix": int, "scale": float}


def register_ahead_of_time(architecture: str | None = None) -> bool:
    """Make TensorRT's builder take the node ``vitslim::SparseAttention`` without the C++ plugin.

    Call it before the ONNX file is parsed, and create the network with ``PREFER_AOT_PYTHON_PLUGINS``.

    Args:
        architecture: compute capability of the GPU, such as ``90``; not given means that of the current GPU, and the
            oldest, whose PTX runs on all later ones, where there is none.

    Returns:
        False: a plugin of this name is registered already, and stays.

    Raises:
        MissingDependencyError: no TensorRT, one without ahead-of-time plugins (before 10.9), or no Triton.
    """
    trt, plugins = _tensorrt()
    if any(_key(creator) == (NAME, NAMESPACE) for creator in trt.get_plugin_registry().all_creators):
        return False
    tensor = plugins.TensorDesc
    inputs = dict.fromkeys(_TENSORS, tensor)
    produce = kernel_producer(trt, plugins, architecture)
    result = tuple[str | bytes, str | bytes, plugins.KernelLaunchParams, plugins.SymIntExprs]

    def describe(query: Any, *operands: Any) -> Any:
        return query.like()

    # TensorRT reads what a plugin takes from the signature; its types are known only once it is imported.
    plugins.register(_PLUGIN_ID)(_signed(describe, {**inputs, **_ATTRIBUTES}, tensor))
    operands = {**inputs, **_ATTRIBUTES, "outputs": tuple[tensor], "tactic": int}
    plugins.aot_impl(_PLUGIN_ID)(_signed(produce, operands, result))
    return True


def ahead_of_time_obstacle() -> str | None:
    """What stands in the way of ``register_ahead_of_time``; ``None`` for nothing."""
    try:
        _tensorrt()
        require_triton()
    except MissingDependencyError as error:
        return str(error)
    return None


def kernel_producer(trt: Any, plugins: Any, architecture: str | None) -> Callable[..., Any]:
    """The function that TensorRT calls for kernel, launch and scalars; the arguments are those of the node."""
    names = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}

    def produce(
        query: Any,
        key: Any,
        value: Any,
        kept: Any,
        tile: int,
        prefix: int,
        scale: float,
        outputs: Any,
        tactic: int,
    ) -> Any:
        if query.dtype not in names:
            raise ConfigError(f"query is {query.dtype}; the kernel takes {', '.join(map(str, names))}")
        width = int(query.shape[3])
        kernel = _compiled(names[query.dtype], width, tile, prefix, scale, architecture)
        images, heads, tokens, _ = query.shape_expr
        _, _, tiles, keys = kept.shape_expr
        launch = plugins.KernelLaunchParams()
        # TensorRT's expressions take plain numbers on their right side only.
        blocks = tiles * -(-tile // kernel.queries) + -(-prefix // kernel.queries)
        launch.grid_x = images * heads * blocks
        launch.block_x = kernel.threads
        launch.shared_mem = kernel.shared_bytes
        # As packed_form leaves them: two strides of each tensor, then the counts.
        head = tokens * width
        numbers = [heads * head, head] * 4 + [heads, tokens, keys, tiles]
        scalars = plugins.SymIntExprs(len(numbers))
        for place, number in enumerate(numbers):
            scalars[place] = plugins.SymInt32(number)
        return kernel.entry, kernel.code, launch, scalars

    return produce


@cache
def _compiled(precision: str, width: int, tile: int, prefix: int, scale: float, architecture: str | None) -> TileKernel:
    import torch

    if architecture is None and torch.cuda.is_available():
        architecture = "".join(map(str, torch.cuda.get_device_capability()))
    fixed = (("tile", tile), ("prefix", prefix), ("scale", scale))
    capability = PORTABLE if architecture is None else int(architecture)
    return baked_kernel(TileSpec(capability, precision, width, tile, fixed))


def _tensorrt() -> tuple[Any, Any]:
    try:
        trt, plugins = import_module("tensorrt"), import_module("tensorrt.plugin")
    except ImportError as error:
        raise MissingDependencyError(
            f"TensorRT's Python plugins are not there ({error}); pip install 'vitslim[tensorrt]'"
        ) from error
    if not hasattr(plugins, "aot_impl"):
        raise MissingDependencyError(
            f"TensorRT {trt.__version__} has no ahead-of-time Python plugins; install 10.9 or later, or build the C++ "
            "plugin with `vitslim plugin build`"
        )
    return trt, plugins


def _key(creator: Any) -> tuple[str, str]:
    return creator.name, creator.plugin_namespace


def _signed(function: Callable[..., Any], parameters: dict[str, Any], result: Any) -> Callable[..., Any]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters.items()]
    function.__signature__ = inspect.Signature(listed, return_annotation=result)  # pyright: ignore[reportFunctionMemberAccess]
    return function
